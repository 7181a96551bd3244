"""Seeded episodes in which a chat states facts about people and then asks for one of them.

An episode can only be answered by remembering its history: names, attributes and values are paired at random. Facts may be
replaced by newer ones, questions may ask how many or which, and other talk may stand between telling and asking.
"held_out" episodes are about people, and in sentences, that "train" never has; "unseen_values" episodes in addition
about values, words that were never an answer in training.
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
