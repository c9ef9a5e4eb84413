"""Tokenization of captions as in coco-caption: Penn Treebank tokens, in lower case, without punctuation marks.

coco-caption runs a Java program, `PTBTokenizer -preserveLines -lowerCase` of Stanford CoreNLP 3.4.1, on a file with one
caption per line, and drops a list of marks. `tokenize` returns the same words without Java. Its rules were derived from
the program's output: tests/golden/make_captions.py stores it, and tests/metrics/test_coco_tokenizer.py compares again.

Oddities are kept, since every published number has them: brackets and "!!" are words, £ is "#" and € is "$", and a
single letter keeps its period ("the letter a.") unless the text continues, on this line or a later one, with a word
such as "The". Therefore pass all captions in the order of coco-caption's file.

As in every lexer, the longest match wins, and the first rule in case of a tie.
"""

import functools
import html
import re
import unicodedata
from collections.abc import Callable, Sequence

# --- Characters -------------------------------------------------------------------------------------------------------

# Combining marks stay with their letters; symbols are words. Any other character that is not a letter or digit, such as
# an emoji, separates words like a space.
MARKS = "".join(
    chr(c)
    for c in [*range(0x2C2, 0xD49), *range(0xE31, 0xE4F)]
    if unicodedata.category(chr(c))[0] == "M" or c < 0x2E0 or 0x55A <= c <= 0x55F
)
SYMBOL = re.compile(r"[!-/:-@\[-`{-~¡¥-©¬®-´¶-¹¿×÷‖‗‚„-•‰-‸※‾-⁂⁰⁴-⁾₀-₎℀-⅏⅕-⅞←-⯿،؛؟٪٭۔।॥、。・！-／：-＠［-｀｛-･]")
REPLACED = {
    **dict.fromkeys("€¤₠\x80", " $ "),
    **dict.fromkeys("‹›", " ' "),
    **dict.fromkeys("“”«»\x93\x94", ' " '),
    **dict.fromkeys("–—―\x96\x97", " -- "),
    **{"£": " # ", "¢": " cents ", "…": " ... ", "\x91": "‘", "\x92": "’", "\u00ad": ""},
    **{"¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "},
}


class _Characters(dict[int, str]):
    """Replacement of each character; a table for `str.translate` that fills itself."""

    def __missing__(self, code: int) -> str:
        self[code] = value = _read_as(chr(code))
        return value


def _read_as(character: str) -> str:
    category = unicodedata.category(character)
    if character in REPLACED:
        return REPLACED[character]
    if character in "\n’‘‛" or category[0] == "L" or category == "Nd" or character in MARKS:
        return character if character <= "\uffff" else " "
    if SYMBOL.match(character):
        return f" {character} " if category == "No" else character
    return " "


CHARACTERS = _Characters()

# --- Rules ------------------------------------------------------------------------------------------------------------

LETTER = r"[^\W\d_]"
WORD = rf"(?:[^\W_]|[{MARKS}])+"
APOSTROPHE, QUOTE = "['’]", "['’`‘‛]"
PREFIXED = rf"(?:[dDoOlL]{APOSTROPHE}(?=[^\W_]{{2}}))?{WORD}"  # d'accord
HYPHENATED = rf"{PREFIXED}(?:[-_]{PREFIXED})*"
INITIALS = r"[A-Za-z](?:\.[A-Za-z])+\."
LISTED = rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{INITIALS}|[A-Za-z0-9]+))+"  # 6.5-inch, and black,white-striped
NOT = rf"(?i:n{QUOTE}t)"
ENDING = r"(?i:'(?:[smd]|re|ve|ll)(?![a-z])|’(?:[smd]|re|ve|ll))"

# Abbreviations keep their period: mr. Mr. MR. of the first list, mfg. Mfg. and Mass. MASS. of the two below.
ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co col
    colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon
    inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich minn mlle mme mo mon mont
    mr mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pvt rd rep reps rev rt sen sens sep sept
    seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo
"""
NOT_IN_CAPITALS = "mfg mtg ppte ppty pte ptes pty ptys"
NOT_IN_SMALL_LETTERS = "ark az del ill la mass miss ore pa tex wash"
BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
# A single letter loses its period before these: "vitamin C. The".
STARTERS = """
    a about according additionally after an as at but earlier he her here however if in it last many more now once one
    other our she since so some such that the their then there these they this we what when while yet you
"""
FILES = "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py"
FILES += " sql tar txt wav x xml zip"


def _any(words: str, *cases: Callable[[str], str]) -> str:
    """Returns an expression for any of the words, in any of the cases."""
    return "(?:" + "|".join(case(word) for case in cases for word in words.split()) + ")"


# A group in parentheses is the token if it is not the whole match.
RULES = [
    # Contractions: is n't, dog 's, 't is
    rf"([A-Za-z]*[A-MO-Za-mo-z]){NOT}",
    rf"({LETTER}(?:{WORD})?){ENDING}",
    NOT,
    ENDING,
    r"'[tT](?=[iI][sS]|[wW][aA][sS])",
    # Apostrophes that are part of a word: j' ai, O'Brien, Hawai'i, c'est, 'em, rock 'n' roll, '90s
    rf"[lLdDjJ]{APOSTROPHE}|[yY]{APOSTROPHE}(?={LETTER})",
    rf"[A-HJ-XZn]{QUOTE}{LETTER}{{2,}}",
    rf"{LETTER}+[aeiouyAEIOUY]{QUOTE}[aeiouA-Z]{LETTER}*",
    rf"(?i:(?:c{APOSTROPHE}(?:est|mon)|cap{APOSTROPHE}n|(?:ol|dunkin|somethin){APOSTROPHE}))",
    r"(?i:s'mores|nor'easter|ev'ry|nat'l|li'l|o'o|cont'd\.)",
    rf"(?i:{APOSTROPHE}(?:em|till?|cause)|'n(?:'|(?=\s))|’n’?)",
    rf"{APOSTROPHE}[2-9]0[sS]|{APOSTROPHE}\d\d(?=\s)",
    # Words with other signs inside: well-known, a_b, 6.5-inch, end.The, U.S.-made, AT&T, and/or, C++, US$
    HYPHENATED,
    LISTED,
    rf"{LETTER}(?:{WORD})?(?:[.!?]{LETTER}(?:{WORD})?)+",
    rf"(?:(?:{WORD}-)*[^\W_]{{2,}}-|(?:{WORD}-){{2,}})?{INITIALS}(?:-{WORD})*",
    r"[A-Z]+(?:[&+][A-Z]+)+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"(?i:anti-|pro-|c\+\+|[cf]#)|[A-Z]+\$",
    # Periods that stay: J. Smith, Dr., No. 5, and any before another mark
    rf"[A-Za-z]\.(?!\s+{_any(STARTERS, str.capitalize, str.upper)}\s)",
    _any(ABBREVIATIONS, str.lower, str.capitalize, str.upper) + r"\.",
    _any(NOT_IN_CAPITALS, str.lower, str.capitalize) + r"\.",
    _any(NOT_IN_SMALL_LETTERS, str.capitalize, str.upper) + r"\.",
    _any(BEFORE_NUMBERS, str.lower, str.capitalize, str.upper) + r"\.(?=\s?\d)",
    r"(?i:ph\.d\.)",
    rf"({HYPHENATED}\.)[,;:]",
    rf"({LISTED}\.)[,;:]",
    # Numbers: -5, 1,000.50, 10:30; dates, fractions, telephones
    r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)",
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|(?:\d{1,4}[- ])?\d{1,4}\\?/\d{1,4}",
    r"(?:\(\d{2,3}\) ?|\+{0,2}(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}",
    # Addresses, names, files, tags
    r"https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},;:'`-]",
    r"www\.(?:[^\s\"<>|.!?(){},]+\.)*[a-zA-Z]{1,4}(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
    r"(?:[a-z]+\.)+(?:com|net|org|edu)(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
    r"<?[A-Za-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|().]+\.)*[^\s\"<>|().]+>?",
    rf"@[A-Za-z_][A-Za-z0-9_]*|#{LETTER}+",
    rf"(?:[^\W_]+\.)+(?i:{_any(FILES, str)})(?=[\s.,-])",
    r"</?[!?]?[A-Za-z][A-Za-z0-9_:.@-]*(?: +[A-Za-z][A-Za-z0-9_:.-]*(?:=(?:\"[^\"\n]*\"|'[^'\n]*'))?)* */?>",
    r"&(?:amp|lt|gt|quot|apos|nbsp);",
    # Smileys; repeated marks; anything else
    r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z])|[-^x=~<>']_[-^x=~<>']",
    r"-+|\.{3,}|_+|\*+|[!?]+|``|''|<<|>>|##+|@@+",
    r"\S",
]
# Most tokens of a caption: no other rule matches more, and they are not abbreviations.
PLAIN = re.compile(r"[A-Za-z]+(?=[,;:!?\"]?[ \n])|[A-Za-z]{7,}(?=\.[ \n])|[.,;:!?\"](?=[ \n])")


@functools.cache
def _patterns() -> list[re.Pattern[str]]:
    return [re.compile(rule) for rule in RULES]


# --- Words ------------------------------------------------------------------------------------------------------------

DROPPED = re.compile(r"['’‘‛`\".?!,:;-]|''|``|-{2,4}|\.{3,}|\u00a0")
SHORTENED = re.compile(rf"{NOT}|{ENDING}")
TWO_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}  # can not, gon na, ..
BRACKETS = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
INSIDE = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0"})  # also inside smileys, telephone numbers and tags
ASCII = str.maketrans("’‘‛", "'``")


def tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenizes the captions of one file.

    Args:
      captions: the captions, in order.
    Returns:
      The words of each caption, joined by spaces; "" for a caption without words. A word may contain a no-break
      space, as in a telephone number, where coco-caption splits it for BLEU and CIDEr-D but not for ROUGE-L.
    """
    text = "\n".join(re.sub(r"[^\S ]", " ", caption) for caption in captions).translate(CHARACTERS)
    lines: list[list[str]] = [[] for _ in captions]
    line, start = 0, 0
    while start < len(text):
        if text[start] in " \n":
            line, start = line + (text[start] == "\n"), start + 1
            continue
        end = _token_end(text, start)
        lines[line] += _words(text[start:end])
        start = end
    return [" ".join(words) for words in lines]


def _token_end(text: str, start: int) -> int:
    if plain := PLAIN.match(text, start):
        return plain.end()
    matches = filter(None, (pattern.match(text, start) for pattern in _patterns()))
    longest = max(matches, key=lambda match: match.end())
    return longest.end(longest.lastindex or 0)


def _words(token: str) -> list[str]:
    """Returns the words of a token: none for a punctuation mark, two for "cannot"."""
    word = html.unescape(token).lower()
    if DROPPED.fullmatch(word):
        return []
    if cut := TWO_WORDS.get(word):
        return [word[:cut], word[cut:]]
    if SHORTENED.fullmatch(word):
        return [word.translate(ASCII)]
    return [BRACKETS.get(word, word.translate(INSIDE))]
