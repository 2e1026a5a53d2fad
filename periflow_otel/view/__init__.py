"""What a person wants to know of a run, as data of bounded size. Pure: no clock, no thread, no I/O.

``records.py`` feeds it with what the ranks record, ``otlp.py`` with OTLP JSON files; ``docs/view.md`` describes what
``RunView.to_dict`` returns.
"""
