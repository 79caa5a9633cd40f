"""Checkpoints: save, verify, choose, load.

::

    checkpoints/step-00001234/
      weights.safetensors              weights and buffers by name, as training continues with them
      averaged.safetensors             once an average has begun: weights and buffers as they are evaluated
      averaged_statistics.safetensors  with it: the average's own batch statistics, before recalibration
      optimizer.safetensors            optimizer state as KEY/PARAMETER
      state.json                       TrainState: steps, epochs, accuracies, loss scaler
      COMPLETE.json                    version, size and sha256 of each file, written last
    checkpoints/latest, best           links

Where four processes wrote it (``checkpoint.sharded``), each file of tensors is four: ``weights-1-of-4.safetensors`` and
so on. A tensor is in one of them, unsharded, so nothing depends on the engine.

A folder gets its name after all its files are on the disk, so it is complete or absent. It is still verified before
use, because disks fail: a damaged one is renamed, and the previous one is used. Nothing here executes what it reads,
and nothing here is collective: rank 0 chooses, and saves, or completes what all have written.
"""

from cifar_dist.checkpoint.contents import (
    NEW_RUN,
    Averaged,
    Checkpoint,
    CheckpointError,
    NewerCheckpointError,
    NoCheckpointLeftError,
    Tensors,
    TrainState,
)
from cifar_dist.checkpoint.folder import (
    evaluated_weights,
    load,
    load_weights,
    read_state,
)
from cifar_dist.checkpoint.history import (
    absence,
    best,
    best_of,
    choose,
    copy_to,
    find_named,
    is_adoptable,
    is_intact,
    is_name,
    links_note,
    list_steps,
    listing,
    named,
    prune,
    replace_state,
    save,
    set_aside,
    surplus,
)
from cifar_dist.checkpoint.marker import verify
from cifar_dist.checkpoint.tensor_files import save_tensors
