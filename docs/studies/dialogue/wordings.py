"""Questions about facts in more words than the library's, so that a question is known by what it asks for. None is held out."""

from __future__ import annotations

import random

from deltamem.training.facts import FactEpisode
from deltamem.training.facts.vocabulary import USER

OTHER_WORDINGS = 0.6  # of the questions about facts
FRAMES = (
    "Do you know {whose} {attribute}?",
    "Could you remind me of {whose} {attribute}?",
    "Tell me {whose} {attribute}.",
    "What did I tell you about {whose} {attribute}?",
    "I forgot {whose} {attribute}. What is it?",
    "I would like to know {whose} {attribute}.",
    "About {whose} {attribute}: what was it again?",
    "Do you still know {whose} {attribute}?",
    "By the way, what is {whose} {attribute}?",
    "Tell me again. {question}",
    "One more question: {question}",
    "{question} I have forgotten.",
    "I am curious. {question}",
    "Do you remember? {question}",
)
QUESTIONS = {
    "favourite colour": (
        "Which colour would {name} choose?",
        "In which colour would {name} paint a room?",
        "What colour has {name} always liked?",
        "If {name} had to pick one colour, which would it be?",
        "Which colour suits {name}'s taste?",
        "What colour is best for {name}?",
    ),
    "home city": (
        "In which city has {name} settled?",
        "Where is {name} at home?",
        "Which town is {name} from these days?",
        "Where has {name} found a flat?",
        "To which city does {name} come home in the evening?",
        "What is the name of {name}'s city?",
    ),
    "pet": (
        "What animal has {name} got?",
        "Which animal does {name} feed every day?",
        "Has {name} got a pet, and which?",
        "What kind of creature is at home with {name}?",
        "Which animal does {name} take to the vet?",
        "What is {name}'s animal?",
    ),
    "favourite food": (
        "What would {name} cook for a feast?",
        "Which dish does {name} never refuse?",
        "What should be on {name}'s plate?",
        "If {name} could eat one thing only, what would it be?",
        "Which food does {name} crave?",
        "What does {name} find tastiest?",
    ),
    "job": (
        "What is {name}'s work?",
        "As what is {name} employed?",
        "What is {name}'s trade?",
        "How does {name} make money?",
        "What is {name}'s occupation?",
        "Which career has {name} chosen?",
    ),
    "hobby": (
        "How does {name} pass the weekend?",
        "What does {name} do after work?",
        "Which activity does {name} love?",
        "What is {name}'s favourite activity?",
        "With what does {name} fill spare time?",
        "What does {name} do for pleasure?",
    ),
    "instrument played": (
        "On which instrument does {name} make music?",
        "What has {name} learned to play?",
        "Which instrument is at home with {name}?",
        "What does {name} play in the orchestra?",
        "Which instrument has {name} got?",
        "With which instrument is {name} at ease?",
    ),
    "favourite drink": (
        "What should be in {name}'s glass?",
        "What would {name} order at the counter?",
        "Which drink does {name} never refuse?",
        "If {name} could drink one thing only, what would it be?",
        "What does {name} drink with pleasure?",
        "Which beverage would {name} choose?",
    ),
    "country of birth": (
        "In which country did {name} come into the world?",
        "Which country is {name} from?",
        "What is {name}'s homeland?",
        "From which country does {name} come?",
        "Where did {name} first see the light of day?",
        "In which country was {name}'s cradle?",
    ),
    "favourite sport": (
        "Which sport would {name} choose?",
        "What sport does {name} watch with pleasure?",
        "For which sport does {name} get up early?",
        "Which sport is {name} keen on?",
        "If {name} had to pick one sport, which would it be?",
        "What sport has {name} always loved?",
    ),
}
# What becomes of a person's name if the person asks, in this order.
OF_THE_USER = (
    ("does {name}", "do I"),
    ("Has {name}", "Have I"),
    ("has {name}", "have I"),
    ("is {name} ", "am I "),
    ("with {name}", "with me"),
    ("for {name}", "for me"),
    ("{name}'s", "my"),
    ("{name}", "I"),
)


def worded(rng: random.Random, episode: FactEpisode) -> str:
    """The question of a training episode, often in other words."""
    fact, question = episode.asked, episode.question["content"]
    if rng.random() >= OTHER_WORDINGS:
        return question
    if rng.random() < 0.5:
        return _about(fact.name, rng.choice(QUESTIONS[fact.attribute]))
    whose = "my" if fact.name == USER else f"{fact.name}'s"
    attribute = fact.attribute.removesuffix(" played")
    return rng.choice(FRAMES).format(whose=whose, attribute=attribute, question=question)


def _about(name: str, question: str) -> str:
    if name != USER:
        return question.format(name=name)
    for of_another, of_the_user in OF_THE_USER:
        question = question.replace(of_another, of_the_user)
    return question
