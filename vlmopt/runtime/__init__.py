"""The only place that touches a model. Start here: one `generate` call, file by file.

Before it, `session` has put the hooks in place: what every call needs, then `captures` (what methods ask to read, one
file per kind of signal), then `components` (what is done, one file per feature). `session.remove` undoes it all.

 1. `hooks/generate` opens a `Generation` around `model.generate`; components may add to its arguments.
 2. `hooks/head` notes which rows have labels, `hooks/outer` which arguments name images (`arguments`).
 3. `hooks/encoder` stands in for the feature functions: captures take pixels, `components/resize` and
    `components/tower_pruning` change what the tower encodes; the family says how features lie on a grid.
 4. The model merges features into embeddings and makes positions, rotary tables and masks by its own code; ahead of a
    decoder that merges by itself, `hooks/embed` has that code run first. `hooks/retrieval` stands around retrievers.
 5. `hooks/decoder` opens a `Step`: `grouping` finds images among the ids, `predicting` the rows that have to stay,
    `unseen` refuses an image that nobody could find; components open their part of the step.
 6. `hooks/layer` hands the input of a layer to its parts: at a cut, `components/pruning` shows a selector what
    `captures` read and gathers the rows that stay. `fitting` then makes the layer's arguments those of its rows
    (`masks`), and `cache` goes on reporting the length that the sequence would have had. Layers between two cuts make
    a stage (`stages`).
 7. `hooks/attention` hands a call to its parts: `components/sparse_prefill` may compute it in the kernel's place, for
    generated tokens `components/sparse_reading`; behind it `captures/rows` reads rows for selectors,
    `components/corrections` write over the output, and `components/eviction` scores the keys that leave when the prompt
    is over.
 8. `hooks/decoder` gives the output its logical length and closes the step: the `cache` learns which rows its layers
    hold, and `components/marks` leaves with it what they are. `hooks/head` marks the first logits.
 9. Where a method wants to know what the model would say otherwise, `side_forward` runs its decoder beside the call.
10. `hooks/generate` closes the call; `vlmopt.reporting` reads its `ledger` when a report is asked for. Over a static
    cache it may compile decoding; `hooks/compiled` says when hooks let such steps pass.

`call` has the three objects that everything is handed: `Session`, `Call` (a `Generation`, a bare `Forward`, or one
`Beside` a generation) and `Step` (a `PromptStep` or a `DecodeStep`). They hold facts; a feature keeps its state in
`slots` of theirs, and what a call costs stands in its `ledger`. `component` says what a feature may do; it puts parts
where a layer begins (`hooks/layer.entry_of`) and into its attention (`hooks/attention.plan_of`), where it has work and
nowhere else; `points` is what they are handed. Two coordinate systems, never mixed: *logical* places count the sequence
as `generate` knows it, *physical* ones the rows or keys of one layer (`context`). Outside the decoder's layers all is
logical. `structure` finds the parts of a model, `cache_kinds` knows the caches of transformers, and `compat` alone its
releases.

Imports run `session → components → captures → hooks` → the files beside this one, never back; `capture` and `component`
are what hooks know of the two.
"""
