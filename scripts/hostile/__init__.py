"""The parts of campaign.py: what is tried, in a process of its own, and how it is judged.

Read trial.py first, then kinds.py and settings.py, which list what is tried. harm.py changes files,
and process.py runs a command and knows what is wrong with any end.
"""
