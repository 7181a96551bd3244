"""Seeded episodes in which a chat states facts about people and then asks for one of them.

Names, attributes and values are paired at random, so an episode can only be answered by remembering its history. Newer
facts may replace older ones, questions may ask how many or which, and other talk may stand between telling and asking.
"held_out" episodes use people and sentences that "train" never has; "unseen_values" episodes also use held-out values,
words that were never an answer in training.
"""

from deltamem.training.facts.config import FactEpisodeConfig
from deltamem.training.facts.distance import told_long_ago
from deltamem.training.facts.draw import fact_episode, fact_episodes, fact_questions
from deltamem.training.facts.episode import Fact, FactEpisode, Kind, Messages
from deltamem.training.facts.fillers import load_fillers
from deltamem.training.facts.vocabulary import Split, held_out_values

__all__ = [
    "Fact",
    "FactEpisode",
    "FactEpisodeConfig",
    "Kind",
    "Messages",
    "Split",
    "fact_episode",
    "fact_episodes",
    "fact_questions",
    "held_out_values",
    "load_fillers",
    "told_long_ago",
]
