"""Measures how readable the tree is, and fails where a limit is broken.

    python -m scripts.tree_figures            # a report
    python -m scripts.tree_figures --check    # one line for each broken limit, as `make lint` runs it

`files` lists the source files that people write, and `module` reads and parses them. `layout` measures folders, file
names, class names and packages; `prose` measures words and first sentences; `sizes` counts lines. `figures` gathers all
measures in one object, `limits` compares them with the limits, and `report` prints them. Standard library only.
"""
