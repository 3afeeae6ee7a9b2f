"""Stories and dialogues that a language model writes for given emotions, with what keeps them clean."""
