"""gRPC infrastructure of every process: servers, channels, errors as statuses, health and metrics.

    server                        `ServiceHost`: a gRPC server with all parts below
    listener                      UNIX and TCP addresses, claimed against a second server
    interceptor                   base of server interceptors; next three: subclasses
    error_mapping, auth, metrics  errors to statuses; bearer tokens; counts of RPCs
    wire                          messages of the internal protocol as domain types, and back
    status                        the table of ZipMoE's errors and gRPC's status codes
    health                        the standard health service
    client                        channels to services
    testing                       a server on a temporary UNIX socket, for tests

The services use these modules, the gateway only `listener`. `zipmoe/process/boot.py`, `zipmoe/client` and
the command line use them too.
"""
