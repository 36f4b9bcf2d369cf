"""jaxloop from Python. Every public function is a name of `jaxloop` itself (`jaxloop.load`, …).

`models` has one model or many adapters of it; `runs` whole studies and what they leave;
`measures` the metrics; `formulas` the models whose recursive training has a formula; `loops` the
loop with a model of your own.
"""
