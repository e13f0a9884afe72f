"""Evaluation: which metrics on which samples of which run, with passports."""
