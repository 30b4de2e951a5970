"""Corpora whose truth is known: grammars and hidden-Markov models, samples of them, exact answers.

``grammar`` reads rule files, ``random_sources`` draws new ones, ``chart`` and ``viterbi`` parse
batches, ``hmm`` is the same for hidden states, ``source`` is what both have in common; ``sample``,
``score`` and ``downstream`` write corpora, true conditionals and labels; ``truth`` lends
conditionals to criterions and models; ``language_model`` makes a source of a causal LM, ``hdf5``
reads masked samples.

Source of the laboratory: Liu, Xie, Li, Ma, "Same Pre-training Loss, Better Downstream" (ICML 2023).
"""
