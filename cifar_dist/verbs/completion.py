"""``cifar-dist completion bash|zsh|fish``."""

from __future__ import annotations

import argparse
import shlex
import sys

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE

HELP = "print tab completion for bash, zsh or fish"
COLLECTIVE = False

_ASK = "candidates"  # what the scripts call: completion candidates SHELL WORD...
_SHELLS = {
    "bash": """\
_cifar_dist_candidates() {
    local -a found
    mapfile -t found < <(ASK bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    COMPREPLY=()
    if [[ -n ${found-} ]]; then mapfile -t COMPREPLY < <(printf '%q\\n' "${found[@]}"); fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[./] ]]; then compopt -o nospace; fi
}
_cifar_dist_script() {
    local word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in train.py | */train.py | cifar_dist) _cifar_dist_candidates; return ;; esac
    done
}
complete -o default -F _cifar_dist_candidates cifar-dist local.sh
complete -o bashdefault -o default -F _cifar_dist_script python python3 torchrun accelerate
""",
    "zsh": """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_cifar_dist() {
    local -a found
    found=("${(@f)$(ASK zsh "${(@)words[1,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( ! $#found )); then _files; return; fi
    compadd -S '' -- ${(M)found:#*[./]}
    compadd -- ${found:#*[./]}
}
compdef _cifar_dist cifar-dist
""",
    "fish": """\
function _cifar_dist_candidates
    set -l found (ASK fish (commandline -opc) (commandline -ct) 2>/dev/null)
    if test -n "$found[1]"
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c cifar-dist -f -a '(_cifar_dist_candidates)'
""",
}


_HELP_TEXT = """\
usage: cifar-dist completion bash | zsh | fish

Print a script for tab completion of verbs, recipes, runs, settings and their values:
  bash   eval "$(cifar-dist completion bash)"      in ~/.bashrc; also python train.py
  zsh    eval "$(cifar-dist completion zsh)"       in ~/.zshrc
  fish   cifar-dist completion fish | source       in ~/.config/fish/config.fish"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("shell", choices=_SHELLS)  # for tab completion only
    verb.set_defaults(words=[])


def run(arguments: argparse.Namespace) -> int:
    words: list[str] = arguments.words
    if words[:1] == [_ASK]:
        from cifar_dist.verbs.candidates import candidates, words_of_line

        shell, *typed = words[1:]
        if shell == "bash":
            typed = words_of_line(typed[0])
        found = candidates(typed)
        if shell == "bash":  # which replaces only what follows one of these
            done = max(typed[-1].rfind(mark) for mark in "=:") + 1
            found = [one[done:] for one in found]
        print("\n".join(found))
        return EXIT_DONE
    if words and words[0] in ("-h", "--help"):
        print(_HELP_TEXT)
        return EXIT_DONE
    if len(words) != 1 or words[0] not in _SHELLS:
        raise UserError(f"name a shell: {', '.join(_SHELLS)}; see: cifar-dist completion --help")
    ask = shlex.join([sys.executable, "-m", "cifar_dist", "completion", _ASK])
    print(_SHELLS[words[0]].replace("ASK", ask), end="")
    return EXIT_DONE
