"""The optional HTTP front with OpenAI's and Anthropic's API: a client of the router that holds no part of the model.

    __main__, boot     from settings to a running process: client of the router, application, servers
    config, metrics    settings of the operator; Prometheus series of the gateway
    host               HTTP server: claims the port, drains at a signal
    connections        places for connections, the end of idle ones
    service            routes, API key, limits and errors
    dialects           the paths that generate: the reader of bodies and the writer of answers of each
    tokenizing         paths that need the tokenizer alone
    named_model        the router's model under the name that clients use
    browsers           which web pages may use the gateway: origins, hosts, preflight requests
    exchange           one HTTP request and its answer
    request_body/      request bodies: tables of the fields that are taken, ignored and refused
    answers/           generates on the router, and writes answers as a whole or as a stream
    json_frames        JSON and server-sent events
    http_problem       errors in the forms that clients expect

HTTP clients call the gateway; `zipmoe gateway` and `zipmoe up --gateway` start it.
"""
