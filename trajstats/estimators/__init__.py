"""Trajectory or network in, one labelled result out."""
