"""Whether a run works here, checked before it waits in a queue or inside its job: one row of a table for each check."""
