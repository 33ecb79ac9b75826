"""Starts and supervises services: `zipmoe up`, and a verb for each service.

    service_verb      the verbs expert-store, decoder, router and gateway
    child             runs a module that the kernel kills with its parent
    service_process   one service as a child process with a log file
    signal_queue      event queue that signals wake reliably
    supervisor        starts, watches and drains several services
    instance_lock, free_ports, log_follower   lock file, TCP ports, logs on stderr
    service_group     command lines of the services; waits until all serve
    up                `zipmoe up`: starts the services and watches them

`zipmoe.cli.__main__` registers the verbs. `zipmoe.cli.showing` starts services with `service_group` and
`child`.
"""
