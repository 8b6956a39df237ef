"""Where a model is computed: in this process, or in a process for every device."""
