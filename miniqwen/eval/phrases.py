"""How models word an answer, in English and Chinese: the patterns of `extraction`.

Promises: each pattern stands for some of the answers in `tests/eval/test_extraction.py`. Costs: nothing.
"""

from __future__ import annotations

import regex

ANY_CASE = regex.IGNORECASE | regex.VERSION1
WHOLE = ANY_CASE | regex.DOTALL

# No part of an answer: LaTeX and Markdown around it, thoughts, and the next question, with which a base model goes on.
BOXED = regex.compile(r"\\boxed\s*(\{((?:[^{}]|(?1))*)\})")
DRESS = regex.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
TAGGED = regex.compile(r"<\s*(?:final_)?answer\s*>(.*?)(?:</\s*(?:final_)?answer\s*>|$)", WHOLE)
MATHS = regex.compile(r"\$\$?([^$\n]+)\$\$?|\\[(\[](.+?)\\[)\]]")
EMPHASIS = regex.compile(r"(\*\*|__|`+|~+)(?=\S)(.+?)(?<=\S)\1|(?<![\w*])\*(?=\S)([^*\n]+)(?<=\S)\*(?![\w*])")
LISTED = regex.compile(r"(?m)^\s*(?:[-*>•]|#{1,3})\s+(?=\S)|^```\w*$|<\|\w+\|>|</s>")
THOUGHT = regex.compile(r"(?:<think>|\A(?=.*</think>)).*?(?:</think>|\Z)", WHOLE)
NEXT_QUESTION = regex.compile(r"\n\s*(?:#+\s*)?(?:question|q|问题|题目)\s*\d*\s*:.*", WHOLE)

FILLER = r"(?:\s*\b(?:therefore|thus|clearly|definitely|most likely|probably|indeed|simply|option|choice)\b)*"
# Behind these stands the answer: in words that say so, in words that may, and at the beginning of a new thought.
STRONG = regex.compile(
    r"\b(?:answer|option|choice|letter|response|solution|ans|guess|correction|(?:correct|right)(?:\s+one)?)\b"
    r"(?:\s+(?:to|for|here)\b[^.\n:]{0,60}?)?['\"]?"
    rf"\s*(?:'s|\bis|\bare|\bwas|\bwould be|\bshould be|\bmust be|[:=]|[-=]>|→|-(?=\s)){FILLER}[\s:]*"
    rf"|####|\b(?:choose|pick|select|go with|opt for)\b{FILLER}[\s:]*"
    r"|(?:答案|选项)['\"\])]?(?:应该|应当|应|就|也|可能)?(?:是|为|选择?|:)[\s:]*|答案['\"\])]?\s*(?=[(\[]?[A-Za-z])"
    r"|(?<![不别勿]|不能|不应|不应该)选择?(?!项)[\s:]*",
    ANY_CASE,
)
WEAK = regex.compile(
    rf"\b(?:it|this|that)(?:\s+is|'s|\s+(?:must|would|should|could|might|may|has to) be)\b{FILLER}[\s:]*"
    r"|\b(?:option|choice|answer|letter|ans\.)(?!\w)[\s:]*|(?<![<>!=])=(?![=>])\s*|(?:应该|应当|应|(?<!不是.{1,8})就|而)?(?<!不是.{1,8}就)是|选项|答(?=:)[\s:]*",
    ANY_CASE,
)
TURN = regex.compile(
    r"(?:\b(?:therefore|thus|hence|so|actually|rather|instead|but|no|wait|sorry|sure|okay|probably|clearly|must be"
    rf"|i mean|i (?:would )?(?:think|believe|say|guess)|i'd say)\b|∴|[-=]>|→){FILLER}[\s,:]*",
    ANY_CASE,
)
SAID_RIGHT = r"[\s:(\[-]*(?:yes|correct|right|true|正确|√|✓)\s*(?:$|[.;,)\n\]])"
SAID_WRONG = r"[\s:(\[-]*(?:no|not correct|incorrect|wrong|false|错误?|×|✗)\s*(?:$|[.;,)\n\]])"
RIGHT = regex.compile(
    r"['\")\].]*\s*(?:(?:is|seems|would be|must be|might be|could be)\s+(?:indeed |clearly )?(?:the |my |more )?"
    r"(?:correct|right|best|better|likely|answer|choice)\b|it is\s*(?:$|[.!])"
    rf"|(?:选项|项)?(?:肯定|显然|才)?(?:是|为)?(?:正确|对))|{SAID_RIGHT}",
    ANY_CASE,
)
DENIED = regex.compile(r"(?:\bnot|n't|\bnever|不|并非)\s*$", ANY_CASE)
DENIED_BEFORE = regex.compile(
    r"(?:(?:\b(?:not|never|cannot)|n't)(?:\s+(?:be|choose|pick|select|use|say))?"
    r"|\b(?:neither|nor|no|unlike|except|excluding|without|rather than|instead of|as opposed to)"
    r"|\b(?:anything|everything|all) but|[不别勿莫](?:要|会|能|应该?|该|可能?|在)?(?:是|选择?)?|并非|排除|除了"
    r"|(?:\bdoubt|(?:\bnot|n't)\s+(?:think|believe|say|agree|sure))(?:\s+(?:that|it|this|is|are|was|be|correct))*)"
    r"(?:\s+(?:of|in|on|at|from|to|with|by))?(?:\s+(?:a|an|the|option|choice|answer))*[\s'\"(\[]*$",
    ANY_CASE,
)
DENIED_BEHIND = regex.compile(
    r"['\")\].:]*\s*(?:选项|项)?(?:(?:is|are|was|can|could|would|does|do|must|should)\s*(?:not\b|n't|never\b)|cannot\b"
    r"|(?:is|are|was|would be|must be)\s+(?:clearly |obviously )?(?:the )?(?:wrong|incorrect|false|excluded|out)\b"
    rf"|can't\b|(?:都|也|肯定|显然|一定)?是?(?:错|不对|不正确|不是|不可能|可以排除|有误))|{SAID_WRONG}",
    ANY_CASE,
)
CLAUSE = regex.compile(
    r"(?<=[.!?])\s+|[。;\n]+|,?\s*\b(?:but|however|so|therefore|thus|hence|then)\b\s*,?|,\s*(?=it\b)"
    r"|,?(?=但|而是|所以|因此|故)|,(?=应|是|选|答案)",
    ANY_CASE,
)
LETTER = regex.compile(r"[(\[{'\"]*\s*([A-Za-z])(?![\p{Latin}\p{N}'_^])(?:\s*[)\]}'\"]+)?")
ENDS = regex.compile(r"\s*(?:$|[.!:;,、。，)\]\n])", regex.VERSION1)
# Behind a letter that is one: an end, or why it is the answer. "A dog" goes on otherwise.
GOES_ON = regex.compile(r"\s+[-—]\s|\s*\p{Han}|\s+(?:because|since|as|rather than|instead of)\b", ANY_CASE)
AND = r"(?:[,、/&]|\band\b|\bor\b|\bnor\b|和|或|与|及)"
ANOTHER = regex.compile(
    rf"\s*{AND}(?:\s|{AND})*[(\[]?(?:(?!I\s+\p{{Ll}})[A-Z](?![\p{{L}}'])|and\b|or\b)", regex.VERSION1
)
BETWEEN = regex.compile(r"[\s.:,、)-]*(?:\b(?:an?|the)\s+)?", ANY_CASE)  # a letter and its choice's text
OTHER_LETTER = regex.compile(r"\s*:\s*[(\[]?[A-Za-z][)\]]?\s*(?:$|\n|[.])")  # "A: B" may mean either
LIST = regex.compile(rf"\s*{AND}(?:\s|{AND}|\b(?:an?|the)\b)*", ANY_CASE)  # between the parts of one
LIST_ENDS = regex.compile(r"\b(?:and|or|nor)\b|[和或与及、]", ANY_CASE)  # before its last part
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # no spaces between words
IN_WORDS = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]"
