"""The first tier's words with their pronunciations; knows nothing of audio or of tokens."""

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = "hundred thousand".split()
JOINTS = "and point minus oh".split()
NUMBER_WORDS = [*DIGITS, *TEENS, *TENS, *SCALES, *JOINTS]
CONTROL_WORDS = "yes no stop go start cancel help hello goodbye please thanks".split()
WORDS = [*NUMBER_WORDS, *CONTROL_WORDS]

# Pronunciations in plain IPA (espeak's conventions, no length marks in American ones). Several ways to say a word are
# separated by a space. The engines that take phonemes (Kokoro, Piper) are given one of them at random.
LEXICON_US: dict[str, str] = {
    "zero": "zˈɪɹoʊ zˈiɹoʊ",
    "one": "wˈʌn",
    "two": "tˈu",
    "three": "θɹˈi",
    "four": "fˈɔɹ",
    "five": "fˈaɪv",
    "six": "sˈɪks",
    "seven": "sˈɛvən",
    "eight": "ˈeɪt",
    "nine": "nˈaɪn",
    "ten": "tˈɛn",
    "eleven": "ɪlˈɛvən əlˈɛvən",
    "twelve": "twˈɛlv",
    "thirteen": "θɜɹtˈin θˈɜɹtin",
    "fourteen": "fɔɹtˈin fˈɔɹtin",
    "fifteen": "fɪftˈin fˈɪftin",
    "sixteen": "sɪkstˈin sˈɪkstin",
    "seventeen": "sˌɛvəntˈin sˈɛvəntin",
    "eighteen": "eɪtˈin ˈeɪtin",
    "nineteen": "naɪntˈin nˈaɪntin",
    "twenty": "twˈɛnti twˈɛni",
    "thirty": "θˈɜɹɾi θˈɜɹti",
    "forty": "fˈɔɹɾi fˈɔɹti",
    "fifty": "fˈɪfti",
    "sixty": "sˈɪksti",
    "seventy": "sˈɛvənti sˈɛvəni",
    "eighty": "ˈeɪɾi ˈeɪti",
    "ninety": "nˈaɪnti nˈaɪni",
    "hundred": "hˈʌndɹəd hˈʌndɹɪd",
    "thousand": "θˈaʊzənd",
    "and": "ænd ənd ənd",
    "point": "pˈɔɪnt",
    "minus": "mˈaɪnəs",
    "oh": "ˈoʊ",
    "yes": "jˈɛs",
    "no": "nˈoʊ",
    "stop": "stˈɑp",
    "go": "ɡˈoʊ",
    "start": "stˈɑɹt",
    "cancel": "kˈænsəl",
    "help": "hˈɛlp",
    "hello": "həlˈoʊ hɛlˈoʊ",
    "goodbye": "ɡʊdbˈaɪ ɡˈʊdbaɪ",
    "please": "plˈiz",
    "thanks": "θˈæŋks",
}

LEXICON_GB: dict[str, str] = LEXICON_US | {
    "zero": "zˈɪəɹəʊ",
    "two": "tˈuː",
    "three": "θɹˈiː",
    "four": "fˈɔː",
    "thirteen": "θɜːtˈiːn θˈɜːtiːn",
    "fourteen": "fɔːtˈiːn fˈɔːtiːn",
    "fifteen": "fɪftˈiːn fˈɪftiːn",
    "sixteen": "sɪkstˈiːn sˈɪkstiːn",
    "seventeen": "sˌɛvəntˈiːn sˈɛvəntiːn",
    "eighteen": "eɪtˈiːn ˈeɪtiːn",
    "nineteen": "naɪntˈiːn nˈaɪntiːn",
    "twenty": "twˈɛnti",
    "thirty": "θˈɜːti",
    "forty": "fˈɔːti",
    "seventy": "sˈɛvənti",
    "eighty": "ˈeɪti",
    "ninety": "nˈaɪnti",
    "hundred": "hˈʌndɹɪd hˈʌndɹəd",
    "oh": "ˈəʊ",
    "no": "nˈəʊ",
    "stop": "stˈɒp",
    "go": "ɡˈəʊ",
    "start": "stˈɑːt",
    "hello": "həlˈəʊ hɛlˈəʊ",
    "please": "plˈiːz",
}
