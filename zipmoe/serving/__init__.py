"""Who computes what in which step: the pages of the KV cache and the plan of a step, without torch and threads."""
