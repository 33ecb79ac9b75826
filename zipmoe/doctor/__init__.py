"""Checks whether this machine can serve well, and advises a remedy for each problem.

    finding      the result of a check: subject, verdict, observation, advice
    processor    processor, native kernels, libraries, Linux version
    linears      order in which torch sums bf16 linears
    storage      direct reads and calibrated bandwidth of the disk
    memory       available memory, limits, locking, sealing, huge pages
    processes    socket paths and open files of the services
    gpu          CUDA device and registration of host memory

`zipmoe.cli.watching.doctor` runs all checks and prints the findings. `zipmoe.cli.device_choice` calls `gpu` for the
device `auto`.
"""
