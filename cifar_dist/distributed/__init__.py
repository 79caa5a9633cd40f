"""The processes of a job: what the launcher started, how ranks agree, and the engines that synchronise them."""
