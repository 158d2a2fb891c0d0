"""Ask a Qarnot service the open questions of docs/assumptions.md, by small experiments."""
