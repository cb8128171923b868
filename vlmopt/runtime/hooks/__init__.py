"""Touch points of a model, from the outside in: thin, they hand on to captures and components."""
