"""A few plain passages on which the size of a model's residual stream is measured."""

PASSAGES = (
    "The bakery on the corner opens at six. By half past, the first trays of rolls are cooling on the rack near the window, "
    "and the delivery van is waiting outside with its engine off.",
    "To change the filter, switch the machine off and wait until it has cooled. Pull the handle towards you, lift the old "
    "filter out, rinse the tray under the tap, and put the new one in with the arrow pointing up.",
    "There are four lakes in the valley. The largest is about nine kilometres long and feeds a small power station; the "
    "others freeze over in most winters and are used by the village for skating.",
    "She counted the chairs twice, wrote the number on the list, and went back to the office to ask how many people were "
    "expected on Thursday. Nobody knew yet.",
    "A train leaves the station every twenty minutes until eleven at night. After that there is a bus, which stops at the "
    "library, the town hall and the old harbour before it returns.",
    "In the second experiment the water was heated to sixty degrees, and the salt was added in five equal portions. Each "
    "portion was stirred for two minutes before the next was weighed.",
    "My grandfather kept his tools in a green cupboard behind the house. There were three saws, a box of nails sorted by "
    "length, and a plane that had belonged to his own father.",
    "The committee will meet on the first Monday of the month. The agenda has seven items, among them the minutes of the "
    "last meeting, the report on the roof, and the choice of a new printer.",
    "Two boys were fishing from the bridge when the boat came by. One of them waved, the man at the wheel waved back, and "
    "the water went on moving between the stones.",
    "The word comes from the name of a river. It was first written down in the twelfth century and has been spelt in at "
    "least six ways since then, two of which are still found on local maps.",
)
