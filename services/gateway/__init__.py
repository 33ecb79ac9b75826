"""The optional HTTP front with OpenAI's API: a gRPC client of the router that holds no part of the model.

    __main__, boot     from settings to a running process: client of the router, application, servers
    config, metrics    settings of the operator; Prometheus series of the gateway
    host               HTTP server: claims the port, drains at a signal
    connections        places for connections, the end of idle ones
    service            routes, API key, limits and errors
    browsers           which web pages may use the gateway: origins, hosts, preflight requests
    exchange           one HTTP request and its answer
    request_body/      request bodies: tables of the fields that are taken, ignored and refused
    together           the prompts of one request, some at a time
    answering, shapes  generates on the router; JSON of whole answers and of stream pieces
    keep_alive         comments in streams that are silent
    token_texts        texts of token ids, for log-probabilities
    http_problem       errors in the form that OpenAI's clients expect

HTTP clients call the gateway; `zipmoe gateway` and `zipmoe up --gateway` start it.
"""
