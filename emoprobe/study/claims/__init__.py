"""What the source of valuation attention says that it does, put to the test on many texts, one function for each claim.

J. Marín, "Emotion-Informed Valuation Mechanism for Improved AI Alignment in Large Language Models" (2024). All cues, fillers
and word lists are this project's own.
"""
