"""The words that generated documents show: short, common, and drawn with letters that read apart."""

from __future__ import annotations

_TEXT = """
ant apple arm axe bag ball band bank barn bath bean bear bed bee bell belt bird boat bone book boot bowl
box bread brick broom brush bulb bun bus cake camp cap car card cart cat cave chain chair chalk cheek
cheese clay cliff clock cloud coat coin comb cone cook cork corn couch cow crab crown cup dawn deer desk
dice dish dog doll door dress drum duck dune dust eagle ear earth egg elbow elm face farm fern field fig
film fire fish flag flame flute fly foam fog foot fork fox frog fruit game gate ghost glass globe glove
goat gold goose grape grass hair hand hat hawk heart hen hill hive hook horn horse house ice ink iron jam
jar jeep jet jug juice key king kite knee knife lake lamp lawn leaf lemon lime lion lip lock log lung maid
map mask mat meat milk mint moon moss moth mouse mud mug nail neck nest net night nose nut oak oar oil
olive onion orange oven owl page paint palm pan paper park peach pear pen pig pin pipe plane plant plate
plum pond pool pot queen quilt rain ring river road robe rock roof room root rope rose ruler sail salt
sand scarf sea seed shark sheep shelf shell ship shirt shoe shop silk skirt sky smoke snow soap sock sofa
soup spoon star stone stool storm straw sugar sun swan table tail tape tea tent tiger toad toast tooth
tower toy train tree truck tub tulip vase vest vine wagon wall wave well whale wheat wheel wind wing wolf
wood wool yard yarn zebra
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
