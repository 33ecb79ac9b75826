"""Plans the forward passes of the router: the rows of each step, and the KV pages of each request.

Pure decisions without torch and without threads, so every plan can be tested. In reading order:

    pages                  ledger of the KV pages: allocation, prefix reuse, eviction
    ticket                 a request as the planner sees it
    planner                admission, the work of the next step, preemption
    drafts                 tokens that may follow a request's own; the contract of drafters
    expectations           expected times of passes, expected acceptance of drafted tokens
    speculation            which drafted tokens a step verifies, and whether the model drafts

Called by the router's engine (`services/router/engine`). The KV pool in `zipmoe/model` shares the size of a page.
"""
