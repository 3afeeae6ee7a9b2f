"""Stories and dialogues that a language model writes for given emotions, with what keeps them clean."""

from emoprobe.corpora.stories.writers import EndpointWriter, ModelWriter, Writer
from emoprobe.corpora.stories.writing import Written, write_stories

__all__ = ["EndpointWriter", "ModelWriter", "Writer", "Written", "write_stories"]
