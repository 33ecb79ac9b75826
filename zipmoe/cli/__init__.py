"""The command line `zipmoe`: one module a verb, grouped in rooms.

    __main__                the application: registers every verb
    group, problem          errors become messages and exit codes
    console, progress_bar   results on stdout, progress on stderr
    size, numbers, chart    sizes, lists of numbers, SVG charts
    flags, device_choice    command lines of services, and their device
    options                 options that `up` and `plan` share
    stores, planning        pack, verify, inspect, synth; plan, simulate, calibrate
    serving, watching       up and the services; health, top, doctor
    talking, benching, showing   generate, chat; bench; demo

`zipmoe` and `python -m zipmoe` start `__main__`. Nothing here imports torch, transformers or grpc before a
verb needs the library.
"""
