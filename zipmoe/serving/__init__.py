"""Plans the forward passes of the router: the rows of each step, and the KV pages of each request.

Pure decisions without torch and without threads, so every plan can be tested. In reading order:

    pages                  ledger of the KV pages: allocation, prefix reuse, eviction
    ticket                 a request as the planner sees it
    planner                admission, the work of the next step, preemption
    drafts, speculation    tokens that may follow a request's own; how many of them a step verifies

Called by the router's engine (`services/router/engine`). The KV pool in `zipmoe/model` shares the size of a page.
"""
