"""The parts of a process around its work: settings, run directory, logs, and the boot of arena owners.

    runtime          run directory of the sockets; paths of all sockets
    config           base of each service's settings: flags, environment, file, defaults
    budgeted         settings of the memory budget, which all three services share
    logging          one event, one line, on stderr
    metrics          registry with the series of every process, and the port that serves it
    boot             boot sequence of expert store and decoder, the owners of arenas
    job, task_pool   progress of a read or recovery; the threads that carry out jobs
    loop_queue       events from threads to the event loop
    arena_metrics    Prometheus series of arenas
    session_metrics  Prometheus series of sessions
    heap             settings of the C library's heap
    python_command   command lines of modules, safe from the working directory
    web_names        origins and hosts of web pages, in settings and in headers
    secret_file      reads the file of a token or an API key

The four processes under services/ build on these modules. The command line, `zipmoe doctor` and `zipmoe.client` use the
run directory and the settings. gRPC itself is in `zipmoe/rpc`.
"""
