"""The representation experiments of "Emotion Concepts and their Function in a Large Language Model", one function each.

Sofroniew, Kauvar, Saunders, Chen et al. 2026, arXiv 2604.07729. All stimuli are this project's own.
"""
