"""One module per tab, each with `show(run, worker)`."""
