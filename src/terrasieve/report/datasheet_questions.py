"""Questions of the datasheet, in short: what a user of a data set has to be told. Answered in ``datasheet_answers``.

Source: the topics are those of Gebru et al., "Datasheets for Datasets", CACM 2021, the words are ours; questions on
persons are put for imagery from above.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """A question, its key in the file of answers, and what a person is asked for where no file knows."""

    key: str
    words: str
    hint: str


SECTIONS: dict[str, tuple[Question, ...]] = {
    "Motivation": (
        Question("purpose", "What was it made for?", "the task, and what was missing before"),
        Question("makers", "Who made it, and on whose behalf?", "people, team, institution"),
        Question("funding", "Who paid for it?", "funder and grant number, or none"),
    ),
    "Composition": (
        Question("instances", "What is one item?", "what an image shows and what comes with it"),
        Question("count", "How many items are there, and from where?", "counts by source"),
        Question("categories", "Which categories, and how many of each?", "the label scheme"),
        Question("selection", "Is it all there is, or a selection?", "the larger set, how it was sampled"),
        Question("labels", "Is each item labelled?", "who or what gave the labels"),
        Question("missing", "What is missing from items?", "and why"),
        Question("relations", "How are items related to each other?", "same place, same scene, time series"),
        Question("splits", "Which splits are recommended?", "and how they were drawn; say how leakage was checked"),
        Question("errors", "Which errors, noise and repetition remain?", "known defects"),
        Question("external", "Does it stand on its own?", "what has to be fetched from elsewhere"),
        Question("confidential", "Is anything in it confidential or restricted?", "sites, contracts, export control"),
        Question("persons", "Can persons, homes or vehicles be recognised?", "and what was done about it"),
        Question("harm", "Could looking at it distress or harm anyone?", "conflict, disaster, protected sites"),
    ),
    "Collection": (
        Question("acquisition", "How was each item acquired?", "sensor, platform, operator, processing level"),
        Question("sampling", "By what rule were items taken from the sources?", "places, seasons, cloud limits"),
        Question("collectors", "Who collected it, and how were they paid?", "people, contractors, crowd workers"),
        Question("period", "From what period are the items?", "dates of acquisition"),
        Question("places", "From where on Earth?", "regions, and those that are underrepresented"),
        Question("review", "Was there an ethical or legal review?", "by whom, with what result"),
        Question("consent", "Were those who are concerned told, and did they agree?", "land owners, labellers"),
    ),
    "Preprocessing": (
        Question("processing", "What was done to the items?", "selection, cleaning, resampling"),
        Question("dropped", "What was dropped, and why?", "rules and counts"),
        Question("labelling", "How were labels made or merged?", "tools, guidelines, agreement"),
        Question("raw", "Can the raw items still be had?", "where"),
        Question("software", "With what software, and can it be repeated?", "versions, commands"),
    ),
    "Uses": (
        Question("used", "What has it been used for?", "papers, models"),
        Question("suited", "What else would it suit?", "tasks, sensors, regions"),
        Question("limits", "What in it could mislead its users?", "gaps of place, season or sensor"),
        Question("unsuited", "What should it not be used for?", "tasks, decisions"),
    ),
    "Distribution": (
        Question("recipients", "Who may have it?", "public, members, nobody yet"),
        Question("form", "In what form, and from where?", "archive, DOI, size"),
        Question("date", "Since when?", "date of release"),
        Question("licence", "Under which licences?", "of the whole, beside those of the sources"),
        Question("restrictions", "Do third parties or laws restrict it?", "terms of imagery providers, export rules"),
    ),
    "Maintenance": (
        Question("keeper", "Who keeps it, and how are they reached?", "name, address"),
        Question("errata", "Where are errors reported and listed?", "issue tracker, list"),
        Question("updates", "Will it be updated, by whom, how often?", "plan"),
        Question("versions", "Which version is this, and what of older ones?", "how long they are kept"),
        Question("removal", "How is something taken out on request?", "way and time limit"),
        Question("extension", "How can others add to it?", "way, and how additions are checked"),
    ),
}  # fmt: skip
KEYS = tuple(question.key for questions in SECTIONS.values() for question in questions)
