"""The only place that touches a model. Start here: one `generate` call, file by file.

Before the call, `session` has put the hooks in place: first what every call needs, then `captures` (what methods ask to
read, one file per kind of signal), then `components` (what is done, one file or folder per feature). `session.remove`
undoes it all.

 1. `hooks/generate` opens a `Generation` around `model.generate`; components may add to its arguments.
 2. `hooks/head` notes which rows have labels, `hooks/outer` which arguments carry images (`arguments`).
 3. `hooks/encoder` stands in for the feature functions. Captures take the pixels; `components/resize` (by
    `smaller_images`) and `components/tower_pruning` change what the tower encodes; the family says how the features lie
    on a grid.
 4. The model merges the features into its embeddings and makes positions, rotary tables and masks by its own code. If
    its decoder does the merging, `hooks/embed` has that code run first. `hooks/retrieval` stands around retrievers.
 5. `hooks/decoder` opens a `Step`: `grouping` finds the images among the ids, `padding` the real tokens, `predicting`
    the rows that have to stay; `unseen` refuses a call whose image was not found. Components open their part of the
    step.
 6. `hooks/layer` hands the input of a layer to the parts that act there. At a cut, `components/pruning` shows a
    selector what captures read of one sample (its `place`), and gathers the rows that stay. Then `fitting` makes the
    layer's arguments those of its rows (masks by `masks`). Layers between two cuts make a stage (`stages`).
 7. `hooks/attention` hands a call of the attention function to the parts that act there. `components/sparse_prefill`
    may compute it in the kernel's place, for generated tokens `components/sparse_reading` or
    `components/grouped_decode`. Behind the kernel `captures/rows` reads rows for selectors, `components/corrections`
    write over the output, and `components/eviction` scores the keys when the prompt is over.
 8. `hooks/decoder` gives the output its logical length and closes the step: `cache` learns which rows its layers hold,
    and `components/marks` leaves with it what they are; what hangs on a cache moves with its samples (`followed`).
    `hooks/head` notes when the first logits exist.
 9. Where a method wants to know what the model would say otherwise, `side_forward` runs the decoder beside the call;
    `components/second_stream` runs the whole model on other pixels (`second_pixels`), in a call of its own through the
    same hooks, and `components/decoding` changes the logits by what they say.
10. `hooks/generate` closes the call; `vlmopt.reporting` reads its `ledger` when a report is asked for.

Beside this way lie `hooks/checkpointing` (layers that run again in the backward pass), `hooks/compiled` (steps that
`generate` compiles, which hooks let pass where they have no work), and `hooks/stand_in`, the base of hooks that replace
a method.

`call` has the three objects that everything is handed: `Session`, `Call` (a `Generation`, a bare `Forward`, or one
`Beside` a generation) and `Step` (a `PromptStep` or a `DecodeStep`). They hold facts; a feature keeps its state in
their `slots`, and the call writes what it costs in its `ledger`. `component` says what a feature may do, `capture` how
a signal is read. A component puts its parts where a layer begins (`hooks/layer.entry_of`) and into an attention module
(`hooks/attention.plan_of`), only where it has work; `points` has what the parts are handed.

Two coordinate systems, never mixed: *logical* places count the sequence as `generate` knows it, *physical* ones count
the rows or keys of one layer (`context`). Outside the decoder's layers all is logical. `structure` finds the parts of a
model, `adapters` sees through what PEFT has wrapped, `cache_kinds` knows the caches of transformers; `compat` has the
names that differ between its releases, and alone looks at a version.

Imports run `session → components → captures → hooks` → the files beside this one, never back. All that hooks know of
components and captures is their contracts, `component` and `capture`.
"""
