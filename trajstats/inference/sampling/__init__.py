"""Maxima and posterior draws: starts by lmfit, chains by emcee, batched chains."""
