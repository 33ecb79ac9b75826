"""Every refusal and its next step: produced on real input, performed to the letter, and seen to work.

sites              every refusal, found in the source
bench              checkpoints, stores and verbs for the cases; the registry of cases
cases_*            the cases: a refusal, then its next step
not_performed.txt  the refusals without a case, each with the reason
test_next_steps    runs the cases; finds refusals without a case and without a reason
"""
