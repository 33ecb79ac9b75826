"""The optional HTTP front with OpenAI's API: a gRPC client of the router that holds no part of the model.

    __main__, boot     from settings to a running process: client of the router, application, servers
    config, metrics    settings of the operator; Prometheus series of the gateway
    host               HTTP server: claims the port, drains at a signal
    service            routes, API key, limits and errors
    exchange           one HTTP request and its answer
    openai_parameters  request bodies: supported, ignored and refused fields
    answer_form        the fields that constrain the form of an answer
    answering, shapes  generates on the router; JSON of whole answers and of stream pieces
    token_texts        texts of token ids, for log-probabilities
    http_problem       errors in the form that OpenAI's clients expect

HTTP clients call the gateway; `zipmoe gateway` and `zipmoe up --gateway` start it.
"""
