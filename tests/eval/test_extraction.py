"""What models really write when they are asked, and which choice that is: a table of answers with their verdicts."""

from __future__ import annotations

import unicodedata

import pytest

from miniqwen.eval.extraction import extract
from miniqwen.eval.metrics import normalised_answer, text_metrics
from miniqwen.questions.rows import Question

ALL = ("letter", "text", "last_line")
CHOICES = {
    "things": ("wood", "iron", "copper", "salt"),
    "colours": ("red", "dark red", "the moon", "Bern"),
    "cities": ("上海", "北京", "广州", "深圳"),
    "numbers": ("5", "-5", "50", "0.5"),
    "signs": ("+", "-", "the", "..."),
    "cases": ("pH", "PH", "naïve", "3 km"),
    "phrases": ("A dog", "none of the above", "not enough light", "It's cold."),
    "maths": ("x^2", "$x$", "\\frac{1}{2}", "x²"),
    "parts": ("京", "北京", "北京市", "东京"),
    "nine": ("a", "b", "c", "d", "e", "f", "g", "h", "i"),
}
# Every line: what the model wrote, and the index of the choice that it means; None: it names none, or not one.
VERDICTS: dict[str, list[tuple[str, int | None]]] = {
    "things": [
        # letters by themselves
        ("B", 1), (" B", 1), ("B.", 1), ("B)", 1), ("(B)", 1), ("[B]", 1), ("b", 1), ("b)", 1), ("(b)", 1), ("B:", 1),
        ("B,", 1), ("**B**", 1), ("**B.**", 1), ("__B__", 1), ("*B*", 1), ("`B`", 1), ("\"B\"", 1), ("“B”", 1),
        ("B\n", 1), ("E", None), ("(F)", None), ("AB", None), ("Because", None), ("Ｂ", 1), ("（Ｂ）", 1),
        ("【B】", 1),
        # letters with the choice's text, or a reason
        ("B. iron", 1), ("B) iron", 1), ("(B) iron", 1), ("B iron", 1), ("B: iron", 1), ("B - iron", 1),
        ("**B. iron**", 1), ("**B**: iron", 1), ("B because it grows", 1), ("B, because it conducts", 1),
        ("B is correct.", 1), ("B since it rusts", 1), ("B is the right answer, as it rusts.", 1),
        ("B\n\nExplanation: wood does not rust.", 1), ("D as salt dissolves", 3),
        # statements
        ("Answer: B", 1), ("Answer: **B**", 1), ("**Answer:** B", 1), ("**Answer: B**", 1), ("ANSWER: B", 1),
        ("answer is b", 1), ("The answer is B.", 1), ("The answer is (B).", 1), ("The correct answer is B) iron.", 1),
        ("The answer is option B", 1), ("The correct option is B.", 1), ("The best choice would be B.", 1),
        ("The answer should be: C", 2), ("Final answer: D", 3), ("My final answer is (D).", 3), ("Option B", 1),
        ("option (b)", 1), ("Choice B.", 1), ("I choose B.", 1), ("I would pick C", 2), ("I'd go with option D.", 3),
        ("#### B", 1), ("\\boxed{B}", 1), ("$\\boxed{B}$", 1), ("$$\\boxed{\\text{B}}$$", 1),
        ("\\boxed{\\text{iron}}", 1), ("\\boxed{\\mathrm{(C)}}", 2), ("<answer>B</answer>", 1),
        ("Thus, \\boxed{D}.", 3), ("The answer is iron.", 1), ("The answer is: **iron**", 1), ("Answer: Iron", 1),
        ("The answer is\n\nC", 2),
        ("Let me think. A: wood burns. B: iron rusts. C: copper shines. So the answer is C.", 2),
        ("A. wood\nB. iron\nC. copper\nD. salt\n\nAnswer: C", 2), ("The answer to the question is therefore B.", 1),
        ("Therefore, the correct answer is:\n\n**C. copper**", 2), ("Therefore B.", 1), ("So it must be D.", 3),
        ("It is B.", 1),
        # the last statement before the first, and what is denied
        ("Iron is wrong. The answer is wood.", 0), ("The answer is A. Wait, the answer is C.", 2),
        ("A. No, actually B.", 1), ("At first sight the answer is iron, but the correct answer is copper.", 2),
        ("B. Wait, the answer is salt.", 3), ("The answer is not A but B.", 1), ("The answer is not A.", None),
        ("The answer isn't iron; it's copper.", 2), ("not iron", None), ("Not B", None), ("It can't be iron.", None),
        ("Iron is not right.", None), ("B is wrong.", None), ("B is incorrect, and C is correct.", 2),
        ("A is wrong, so B.", 1), ("Copper, not iron.", 2), ("C, not B.", 2), ("Copper rather than iron", 2),
        ("copper instead of wood", 2), ("It is neither wood nor iron, it is salt.", 3),
        ("Not wood. Not iron. Copper.", 2), ("Wood isn't a metal. Iron is.", 1), ("The answer is never salt", None),
        # texts
        ("iron", 1), ("Iron", 1), ("IRON!", 1), ("iron.", 1), ("It is iron.", 1), ("It's iron, a metal.", 1),
        ("**Iron**", 1), ("I think that iron rusts.", 1), ("irony", None), ("environment", None),
        ("The iron-rich one", 1), ("“Iron”", 1), ("iron and copper", None), ("Either iron or copper.", None),
        ("A and B", None), ("A, B", None), ("B, C and D", None), ("A. wood\nB. iron\nC. copper\nD. salt", None),
        ("A or B", None), ("Both B and C.", None), ("wood, iron, copper, salt", None), ("hm\n\nSalt", 3),
        ("First I thought iron, but copper conducts.", 2), ("A metal: iron", 1), ("A piece of wood", 0),
        ("I have no idea.", None), ("", None), ("   ", None), ("?", None), ("...", None), ("C seems right", 2),
        ("Eliminate A. Eliminate B. Choose C.", 2), ("Neither A nor B", None), ("All of the above", None),
        ("<think>The answer is A? No.</think>\nB", 1),
        ("The correct answer is B. Iron is a metal, but wood is not.", 1), ("The answer is either A or B", None),
        ("Is it iron? No, it is copper.", 2),
        # what a base model goes on with is another question
        ("B\n\nQuestion: Which one burns?\nAnswer: A", 1), (" iron\nQuestion: And then?\nA. iron\nAnswer: C", 1),
        # Chinese around them
        ("答案是B", 1), ("答案：B", 1), ("答案:B。", 1), ("选B", 1), ("应选C。", 2), ("选择D", 3),
        ("正确答案是C。", 2), ("正确答案为：D", 3), ("本题选B，因为铁会生锈。", 1), ("故选：C", 2),
        ("因此，答案选 D。", 3), ("我选A", 0), ("B项正确", 1), ("B选项正确。", 1), ("B是正确的。", 1),
        ("答案不是A，而是B。", 1), ("不选A", None), ("A错误，选C", 2), ("A不对。答案是D", 3), ("排除A和B，选C", 2),
        ("答案是（B）", 1), ("答案是【B】。", 1), ("**答案：B**", 1), ("答案是iron。", 1), ("A和B", None),
        ("正确的选项是B", 1), ("最终答案：\\boxed{B}", 1), ("选项B", 1), ("答案应该是C", 2), ("答案选择C项。", 2),
        ("「B」", 1), ("综上所述，选项C正确。", 2), ("没有正确答案", None), ("选C，因为A和B都不对", 2),
    ],
    "colours": [
        ("(C) the moon", 2), ("D. Bern", 3), ("I think... answer: (A)", 0), ("A dog is red", 0), ("dark red", 1),
        ("RED!", 0), ("reddish", None), ("hm\n\nMoon", 2), ("moon", 2), ("It is a moon.", 2),
        ("It is darker: dark red.", 1), ("Bern is.", 3), ("The moon is dark red", None), ("a", 0), ("bern.", 3),
        ("dark  red", 1),
    ],
    "cities": [
        ("中国的首都是北京。", 1), ("北京", 1), ("北京。", 1), ("答案是北京", 1), ("不是上海，是北京。", 1),
        ("上海不对，应该是广州。", 2), ("答案：深圳", 3), ("上海和北京", None), ("我认为是广州市。", 2),
        ("并非上海", None), ("选B。北京是首都。", 1), ("B、北京", 1), ("Ｂ．北京", 1), ("“北京”", 1), ("南京", None),
        ("首先排除上海，所以答案是深圳。", 3), ("首都不是上海而是北京", 1), ("The capital is 北京.", 1),
    ],
    "numbers": [
        ("5", 0), ("-5", 1), ("−5", 1), ("－５", 1), ("５", 0), ("50", 2), ("0.5", 3), ("The result is -5.", 1),
        ("x = 5", 0), ("x=-5", 1), ("500", None), ("5.5", None), ("15", None), ("50.0 exactly", None),
        ("It is 50, not 5.", 2), ("1,500", None), ("$5$", 0), ("3 + 2 = 5", 0), ("答案是-5", 1), ("等于50。", 2),
        ("+5", 0), ("about 0.5", 3), (".5", None), ("\\boxed{-5}", 1), ("D) 0.5", 3),
    ],
    "signs": [
        ("+", 0), ("-", 1), ("...", 3), ("the", 2), ("?", None), ("2 + 2", None), ("A", 0), ("B: -", 1),
        ("The answer is +.", 0), ("the sign", None), ("..", None), ("!", None), ("—", None),
    ],
    "cases": [
        ("pH", 0), ("PH", 1), ("ph", None), ("The answer is PH.", 1), (unicodedata.normalize("NFD", "naïve"), 2),
        ("NAÏVE", 2), ("naive", None), ("3 km", 3), ("3\u00a0km", 3), ("13 km", None), ("3 kmh", None),
    ],
    "phrases": [
        ("A dog", 0), ("a dog.", 0), ("dog", 0), ("A dog barks", 0), ("The dogs", None), ("None of the above", 1),
        ("none of the above.", 1), ("not enough light", 2), ("There is not enough light.", 2), ("it's cold", 3),
        ("It’s cold.", 3), ("A cat", None), ("B", 1),
    ],
    "maths": [
        ("x^2", 0), ("$x^2$", 0), ("x", 1), ("$x$", 1), ("\\frac{1}{2}", 2), ("\\boxed{\\frac{1}{2}}", 2), ("x²", 3),
        ("C", 2),
    ],
    "parts": [
        ("京", 0), ("北京", 1), ("北京市", 2), ("答案是北京市。", 2), ("东京", 3), ("是北京", 1), ("我想去北京。", 1),
    ],
    "nine": [("i", 8), ("I think that it is c", 2), ("I", 8), ("(I)", 8), ("I have no idea", None), ("h.", 7)],
}  # fmt: skip
CHOICES |= {
    "animals": ("a cat", "a dog", "a bird", "a fish"),
    "yesno": ("yes", "no"),
    "tf": ("True", "False"),
    "yn3": ("yes", "no", "maybe"),
    "sent": ("It expands when heated.", "It contracts when heated.", "It stays the same.", "It melts."),
    "zh": ("物体受热膨胀", "物体受热收缩", "体积不变", "熔化"),
    "none": ("iron", "copper", "both iron and copper", "none of these"),
    "years": ("1914", "1918", "1939", "1945"),
    "money": ("$5", "$50", "$500", "5 dollars"),
    "pairs": ("iron and zinc", "iron and tin", "zinc and tin", "iron"),
    "chem": ("H2O", "CO2", "O2", "NaCl"),
    "not": ("not possible", "possible", "impossible", "unlikely"),
    "people": ("Marie Curie", "Pierre Curie", "Albert Einstein", "Niels Bohr"),
    "five": ("oven", "shelf", "table", "sink", "cupboard"),
}
# More of them, judged before the rules were written for them.
MORE: dict[str, list[tuple[str, int | None]]] = {
    "things": [
        ("The answer is definitely B.", 1), ("Correct answer: B", 1), ("Ans: C", 2), ("Ans. (C)", 2),
        ("A: B", None), ("Answer B", 1), ("B!", 1), ("B?", None), ("~B~", 1), ("- B", 1), ("* B", 1), ("1. B", 1),
        ("> B", 1), ("# B", 1), ("### Answer\nB", 1), ("**Final Answer:** B", 1), ("**Final Answer**\n\nB", 1),
        ("Final Answer: The final answer is $\\boxed{B}$. I hope it is correct.", 1),
        ("The final answer is: $\\boxed{\\text{(B)}}$", 1), ("$\\boxed{\\textbf{(B)}\\ iron}$", 1),
        ("\\boxed{B. iron}", 1), ("\\boxed{\\text{B) iron}}", 1), ("\\(\\boxed{C}\\)", 2), ("\\[\\boxed{C}\\]", 2),
        ("{\"answer\": \"B\"}", 1), ("{\"answer\": \"iron\"}", 1), ("```json\n{\"answer\": \"C\"}\n```", 2),
        ("<answer> C </answer>", 2), ("<answer>C. copper</answer>", 2),
        ("Let's see. Option A is wood, which burns. Option B is iron, which rusts. So B.", 1),
        ("So, the answer is B) iron", 1), ("So the final answer is D", 3), ("The right choice is D.", 3),
        ("It has to be C.", 2), ("Must be C", 2), ("Probably C", 2), ("I think B", 1), ("I think it's B.", 1),
        ("I believe the answer is C", 2), ("I'd say B", 1), ("I would say C.", 2), ("My answer: D", 3),
        ("My guess is D", 3), ("Clearly B.", 1), ("Sure! The answer is B.", 1), ("Sure, here is the answer: B", 1),
        ("Of course! B", 1), ("Okay, so B.", 1), ("Hmm, B?", None), ("Both A and C are wrong; B is right.", 1),
        ("A, C and D are wrong, so the answer is B.", 1), ("All but C are metals.", None),
        ("It isn't A, B or D.", None), ("It is not A, so it must be B.", 1), ("Anything but B", None),
        ("I don't think it is B.", None), ("I doubt that it is iron.", None), ("The answer cannot be iron.", None),
        ("The answer is not wood, iron or salt. It is copper.", 2), ("The answer is no longer A; it is C.", 2),
        ("Answer: not B", None), ("B is the incorrect choice; D is correct", 3), ("B (iron) is correct", 1),
        ("B (iron) is incorrect, the answer is C", 2), ("Correct: C", 2), ("Correct answer is C", 2),
        ("C is the correct answer", 2), ("C is correct answer.", 2), ("(c) is correct", 2),
        ("The correct one is C.", 2), ("The answer would be (c) copper", 2), ("answer = C", 2), ("Answer -> C", 2),
        ("Answer → C", 2), ("Answer – C", 2), ("=> C", 2), ("∴ C", 2), ("A or B? B.", 1), ("A? B? No: C", 2),
        ("A.\nB.\nC.", None), ("A\nB", None),
        ("The choices are A) wood B) iron C) copper D) salt. The answer is D", 3),
        ("A) wood B) iron C) copper D) salt", None), ("Iron (B)", 1), ("iron, i.e. B", 1), ("iron – option B", 1),
        ("the second option", None), ("Option 2", None), ("2", None), ("B or maybe C", None),
        ("Between B and C, B is better.", 1), ("If it were wood it would burn. It does not, so it is iron.", 1),
        ("Wood burns; iron does not. Iron.", 1), ("It's made of iron, not of wood", 1),
        ("I'd choose copper over iron", 2), ("copper (not iron)", 2), ("Iron? No. Copper? Yes.", 2),
        ("iron oxide", 1), ("cast-iron", 1), ("Iron's", 1), ("irons", None), ("no iron", None),
        ("without iron", None), ("ironwood", None), ("B\nB\nB", 1), ("BBBB", None), ("b. IRON", 1),
        ("The answer is a metal: iron.", 1), ("The answer is a metal.", None), ("Answer: A metal such as iron", 1),
        ("The answer is B, not C", 1), ("The answer is B rather than C.", 1), ("The answer is B. C is wrong.", 1),
        ("The answer is B. Not C.", 1), ("The answer is B because C is wrong.", 1), ("B. The answer is not C.", 1),
        ("C. Wait, no, it's B.", 1), ("C... no, B", 1), ("C, sorry, I mean B.", 1),
        ("Answer: C\n\nCorrection: B", 1), ("I can't answer that.", None),
        ("As an AI model, I cannot choose.", None), ("Sorry, I don't know", None), ("A good question!", None),
        ("I need more information.", None), ("D'accord", None), ("A+", None), ("C++", None), ("Vitamin C", None),
        ("Grade B", None), ("Human: next question", None), ("B<|im_end|>", 1), ("B</s>", 1),
        (" B\n\nQ: What burns?\nA: wood", 1), ("iron\n\nQ: next?\nA: wood", 1),
        ("<think>\nMaybe A, the answer is A.\n</think>\n\nThe answer is **D**.", 3),
        ("<think>The answer is A", None), ("<think></think>C", 2), ("答案: C.", 2), ("答案为C", 2), ("答案C", 2),
        ("答案是:C", 2), ("正确答案：**C**", 2), ("正确选项是C", 2), ("正确选项为（C）", 2), ("选择C选项", 2),
        ("选项C是正确的", 2), ("选项为D", 3), ("应该选择B", 1), ("所以选B。", 1), ("因此选B", 1),
        ("故答案为：B.", 1), ("故选B．", 1), ("综上，答案为B", 1), ("综上所述，正确答案是 B。", 1),
        ("我认为答案是B", 1), ("我觉得应该是B", 1), ("我会选择C", 2), ("答案不是B", None), ("B不正确", None),
        ("B是错误的", None), ("B选项错误，D选项正确", 3), ("不应该选A，应该选B", 1), ("不能选A", None),
        ("A、B都不对，选D", 3), ("A和B都错，答案是C", 2), ("排除A、B、D，故选C", 2), ("正确的是C", 2),
        ("本题答案是D", 3), ("此题选D", 3), ("【答案】C", 2), ("【答案】C\n【解析】因为A和B不导电", 2),
        ("解析：木头会燃烧。\n答案：A", 0), ("A。因为木头会燃烧", 0), ("B，铁会生锈", 1), ("Ｃ。", 2),
        ("（Ｄ）", 3), ("答案：Ｄ", 3), ("「答案」：B", 1), ("B或C", None), ("B、C", None), ("ABC", None),
        ("答案是A还是B？我选B。", 1), ("可能是B", 1), ("答案可能是C", 2), ("大概是C", 2), ("答案就是C", 2),
        ("没有一个是对的", None), ("不知道", None), ("都不对", None), ("The answer is B, i.e., iron.", 1),
        ("I am confident that the answer is B.", 1), ("It's definitely B.", 1), ("It's B, not A.", 1),
        ("That would be B.", 1), ("B, obviously.", 1), ("B, I think.", 1), ("B (iron).", 1),
        ("B - because iron rusts", 1), ("Answer: (B) iron", 1), ("Answer:B", 1), ("Answer : B", 1),
        ("ANSWER IS: B", 1), ("the answer's B", 1), ("The answer, I believe, is B.", None),
        ("The most likely answer is C.", 2), ("The answer is most likely C.", 2),
        ("The only metal that shines is copper, so C.", 2), ("Wood is out. Salt is out. Iron it is.", 1),
        ("A is a plant, D is a mineral, so B or C.", None), ("It could be B.", 1), ("B would be my answer.", 1),
        ("D would be wrong.", None), ("B can't be right.", None), ("B might be right.", 1),
        ("Only B is correct.", 1), ("None is correct except B.", None), ("B isn't correct.", None),
        ("Not sure, but C.", 2), ("Not sure. C?", None), ("I'm not sure, the answer is C", 2),
        ("It is not B. It is not C. It is D.", 3), ("The answer is not B. The answer is D.", 3), ("Not B. D.", 3),
        ("Instead of A, choose D", 3), ("Choose D instead of A.", 3), ("I would not choose A", None),
        ("I wouldn't pick A. I'd pick D.", 3), ("Never choose A.", None), ("Do not choose iron.", None),
        ("You should choose iron.", 1), ("Choose iron over copper.", 1), ("Select option (C).", 2),
        ("Option C it is.", 2), ("C it is.", 2), ("C for copper", 2), ("C as in copper", 2), ("Letter C", 2),
        ("The letter is C", 2), ("c) copper", 2), ("c.copper", 2), ("C.copper", 2), ("(C)copper", 2),
        ("[C] copper", 2), ("C/ copper", 2), ("C = copper", 2), ("C】", 2),
        ("The answer is (D) salt, not (B) iron.", 3), ("A: wood - incorrect. B: iron - correct.", 1),
        ("Explanation: iron is a metal.\nAnswer: iron", 1), ("Reasoning: ... so C.\n\nFinal: C", 2),
        ("Result: C", None), ("The answer is A B or C", None), ("Answers: A and C", None),
        ("The answers are A and C", None), ("The answer is A and C.", None), ("A & C", None), ("A/C", None),
        ("A+C", None), ("A, C", None), ("AC", None), ("A C", None), ("A;C", None), ("选 B 。", 1), ("选：B", 1),
        ("答：B", 1), ("答案应为B", 1), ("答案應該是B", 1), ("答案是 B，不是 A。", 1), ("应该不是A", None),
        ("不是A也不是B，是C", 2), ("不是B就是C", None), ("B肯定不对", None), ("B显然正确", 1), ("B才是正确答案", 1),
        ("只有B正确", 1), ("A和B中，B正确", 1), ("所以答案是B，因为A不对", 1), ("我不选A", None),
        ("我不会选A，我选D", 3), ("不要选A", None), ("别选A", None), ("B吧", 1), ("是B", 1), ("就是B", 1),
        ("因为是金属，所以是B", 1), ("根据题意，答案是copper。", 2), ("答案：copper（C）", 2), ("C.铜", 2),
    ],
    "cities": [
        ("首都是北京", 1), ("北京是首都", 1), ("应该是北京吧", 1), ("是上海吗？不，是北京。", 1),
        ("不是北京", None), ("北京不是答案", None), ("答案不是北京，而是广州", 2), ("除了北京，都是南方城市", None),
        ("北京和上海都不对，应为深圳", 3), ("B 北京", 1), ("B:北京", 1), ("答案：B（北京）", 1),
        ("答案是B，即北京。", 1), ("答案是北京（B）", 1), ("上海 → 错；北京 → 对", 1), ("北京市", 1),
        ("北 京", None), ("BEIJING", None), ("我选北京，不选上海。", 1), ("与其说是上海，不如说是北京", 1),
        ("广州位于广东，深圳也是。首都是北京。", 1), ("首都不在上海，在北京。", 1), ("既不是上海也不是北京", None),
        ("正确答案：北京", 1), ("上海是错误的，北京是正确的", 1), ("选北京", 1), ("**北京**", 1),
        ("\\boxed{北京}", 1), ("我觉得是北京。", 1), ("首都应该是北京而不是上海。", 1),
        ("上海不是首都。北京是。", 1), ("不，是深圳", 3), ("上海？不对。北京！", 1), ("答案在B和C之间，我选C", 2),
        ("绝不是上海", None), ("不可能是北京", None), ("北京，中国的首都", 1), ("答案选北京", 1),
        ("上海（错误）", None), ("广州和深圳都在广东", None), ("Beijing", None), ("正确答案是「北京」", 1),
        ("答案是《北京》", 1),
    ],
    "numbers": [
        ("It equals 5.", 0), ("= 5", 0), ("2+3=5", 0), ("The answer is 5.0", None), ("five", None), ("-5.", 1),
        ("minus 5", None), ("negative 5", None), ("5%", None), ("5 apples", 0), ("50%", None), ("$50$", 2),
        ("\\boxed{50}", 2), ("The answer is 50", 2), ("between 5 and 50", None), ("0.50", None), ("1/2", None),
        ("5 or 50", None), ("10 - 5 = 5", 0), ("0 - 5 = -5", 1), ("55 - 5 = 50", 2), ("５０", 2), ("答案是50。", 2),
        ("结果为-5", 1), ("等于 0.5", 3), ("The answer is (5).", 0), ("Answer: 5\n", 0), ("5th", None),
        ("5e3", None), ("5:00", None), ("A5", None), ("-5 or 5", None), ("The answer is minus five", None),
        ("−5.0", None), ("approximately 50", 2), ("50 degrees", 2), ("x = -5.", 1), ("x=0.5", 3), ("5²", None),
        ("5/2", None), ("5 x 10", None), ("(5)", 0), ("5, because 2+3=5", 0), ("≈ 50", 2), ("50°", None),
        ("#5", 0), ("No. 5", 0), ("5,5", None), ("5 000", None),
    ],
    "animals": [
        ("cat", 0), ("The cat", 0), ("the dog.", 1), ("A bird, because it flies", 2), ("A fish", 3), ("a", 0),
        ("A", 0), ("A.", 0), ("An animal", None), ("It is a cat.", 0), ("It is not a cat; it is a dog.", 1),
        ("dogs", None), ("A dog or a cat", None), ("dogfish", None), ("A cat or B", None), ("B. a dog", 1),
        ("I have a dog", 1),
    ],
    "yesno": [
        ("Yes.", 0), ("No.", 1), ("no, it isn't", 1), ("Yes, it is.", 0), ("The answer is no.", 1),
        ("No, the answer is yes.", 0), ("not yes", None), ("yes and no", None), ("Answer: No", 1), ("I know", None),
        ("No idea.", None), ("There is no answer", None), ("Nope", None), ("A", 0), ("B. no", 1),
        ("Yes, there is no doubt.", 0), ("答案是 yes", 0), ("Yes, no doubt.", 0), ("No.\n\nYes would be wrong.", 1),
        ("Not at all. No.", 1), ("I'd say yes", 0), ("It's a no.", 1), ("no", 1), ("NO!", 1), ("yes...", 0),
        ("No one knows", None), ("The answer is: yes", 0), ("Is it? No.", 1), ("\\boxed{no}", 1),
        ("yesterday", None),
    ],
    "tf": [
        ("True", 0), ("true.", 0), ("FALSE", 1), ("The statement is false.", 1),
        ("It is true that it is false.", 1), ("That's not true.", None), ("untrue", None),
        ("The answer is True, not False", 0), ("Answer: **False**", 1), ("It's true.", 0),
        ("The claim is not true.", None), ("The claim is not true, so False.", 1),
        ("false, because it is not true", 1), ("True or False?", None), ("F", None), ("T", None),
        ("This is True.", 0),
    ],
    "yn3": [
        ("maybe", 2), ("Yes", 0), ("no", 1), ("Perhaps", None),
    ],
    "sent": [
        ("It expands when heated.", 0), ("it contracts when heated", 1), ("The answer is: It stays the same.", 2),
        ("It does not melt. It stays the same.", 2), ("It expands.", None), ("B. It contracts when heated.", 1),
        ("It melts. No: it expands when heated.", 0),
    ],
    "zh": [
        ("物体受热膨胀。", 0), ("答案是物体受热膨胀", 0), ("物体受热不会收缩，而是物体受热膨胀", 0),
        ("体积不变", 2), ("是熔化", 3), ("不是熔化", None), ("B", 1), ("膨胀", None),
    ],
    "none": [
        ("none of these", 3), ("None of them", None), ("both iron and copper", 2), ("iron and copper", None),
        ("iron", 0), ("Both iron and copper are metals.", 2), ("C", 2),
    ],
    "years": [
        ("1914", 0), ("in 1918.", 1), ("1914-1918", None), ("It began in 1914 and ended in 1918", None),
        ("The war ended in 1945", 3), ("19145", None), ("1939年", 2), ("于1945年结束", 3), ("July 28, 1914", 0),
    ],
    "money": [
        ("$5", 0), ("$50", 1), ("$500.", 2), ("$5.00", None), ("5 dollars", 3), ("The price is $50.", 1),
        ("50", None), ("\\$50", 1),
    ],
    "pairs": [
        ("iron and tin", 1), ("iron", 3), ("Iron and zinc.", 0), ("zinc", None), ("The answer is zinc and tin", 2),
        ("D", 3),
    ],
    "chem": [
        ("H2O", 0), ("h2o", 0), ("H₂O", None), ("CO2 is a gas", 1), ("O2", 2), ("CO2 and O2", None), ("C", 2),
        ("NaCl.", 3), ("H2O2", None),
    ],
    "not": [
        ("not possible", 0), ("It is not possible.", 0), ("possible", 1), ("impossible", 2), ("It's impossible", 2),
        ("not impossible", None), ("The answer is not possible.", 0),
    ],
    "people": [
        ("Curie", None), ("Marie Curie", 0), ("Marie  Curie", 0), ("Marie Curie and Pierre Curie", None),
        ("It was Niels Bohr, not Albert Einstein.", 3), ("Einstein", None), ("Not Pierre Curie but Marie Curie", 0),
        ("Albert Einstein (C)", 2), ("C. Albert Einstein", 2), ("It wasn't Albert Einstein.", None),
        ("Niels Bohr and Albert Einstein argued.", None), ("Marie Curie (born 1867)", 0),
    ],
    "five": [
        ("E", 4), ("(e)", 4), ("e", 4), ("E. cupboard", 4), ("cupboard", 4), ("in the cupboard", 4), ("F", None),
        ("on the shelf, not in the oven", 1), ("You would put it in the oven.", 0), ("The oven (A).", 0),
        ("table, not sink", 2), ("Table; the sink is too small.", 2), ("Sink", 3), ("e. cupboard", 4),
        ("I would use the kitchen sink.", 3),
    ],
}  # fmt: skip
for kind, lines in MORE.items():
    VERDICTS.setdefault(kind, []).extend(lines)


@pytest.mark.parametrize(
    ("kind", "text", "right"), [(kind, text, right) for kind, lines in VERDICTS.items() for text, right in lines]
)
def test_an_answer_is_taken_for_what_it_says(kind: str, text: str, right: int | None) -> None:
    question = Question("q", "Which?", CHOICES[kind], 0, CHOICES[kind][0])
    index, rule = extract(text, question, ALL)
    assert (index, rule is None) == (right, right is None)


def test_the_table_is_long_and_says_yes_and_no() -> None:
    verdicts = [right for lines in VERDICTS.values() for _, right in lines]
    assert len(verdicts) >= 750
    assert sum(right is None for right in verdicts) > 200
    assert all(len({text for text, _ in lines}) == len(lines) for lines in VERDICTS.values())


@pytest.mark.parametrize(
    ("text", "rules", "choice", "rule"),
    [
        ("B", ALL, 1, "letter"), ("The answer is B.", ALL, 1, "letter"), ("iron", ALL, 1, "text"),
        ("The answer is wood.", ALL, 0, "text"), ("B", ("text",), None, None), ("iron", ("letter",), None, None),
        ("A. iron. Wait, the answer is salt.", ("letter", "text"), 3, "text"),
        ("iron\nsalt", ("last_line",), 3, "last_line"), ("iron\n(B)", ("last_line",), 1, "last_line"),
        ("salt\nIt is iron", ("last_line",), None, None), ("An iron", ("last_line",), 1, "last_line"),
    ],
)  # fmt: skip
def test_the_rules_are_asked_in_their_order(
    text: str, rules: tuple[str, ...], choice: int | None, rule: str | None
) -> None:
    assert extract(text, Question("q", "Which?", CHOICES["things"], 0, "wood"), rules) == (choice, rule)


def test_of_equal_choices_the_first_is_taken() -> None:
    assert extract("oven", Question("q", "Which?", ("shelf", "oven", "Oven", "oven"), 1, "oven"), ALL) == (1, "text")


SAME = [
    ("Iron", "iron"), ("the iron", "iron"), ("iron.", "iron"), ("  iron  ore ", "iron ore"), ("An apple", "apple"),
    ("５", "5"), ("北京。", "北京"), ("“Iron”", "iron"), ("naïve", unicodedata.normalize("NFD", "naïve")),
    ("−5", "-5"), ("+5", "5"), ("1,500", "1500"), ("It's", "its"), ("well-known", "well-known"), ("A", "a"),
    ("the", "The"), ("+", " + "), ("ＡＢＣ", "abc"), ("5 %", "5 %"), ("$5", "$5"), ("3.0", "3.0"),
    ("（北京）", "北京"), ("5.", "5"), ("-5.", "-5"),
]  # fmt: skip
OTHER = [
    ("", "A"), ("", "the"), ("", "+"), ("...", "+"), ("A", "an"), ("5", "-5"), ("-5", "−6"), ("+", "-"), ("!", "?"),
    ("0.5", "05"), ("0.5", "5"), ("1.5", "15"), ("iron", "iron ore"), ("x²", "x2"), ("5", "5 %"), ("", " "),
    ("$5", "5"), ("C++", "C"), ("C#", "C"), ("-", ""), ("1/2", "12"), ("3:4", "34"), ("a", ""), ("京", "北京"),
    ("10^5", "105"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "answer"), SAME)
def test_answers_that_are_the_same(text: str, answer: str) -> None:
    assert normalised_answer(text) == normalised_answer(answer) != ""
    found = text_metrics([text], [answer])
    assert (found["exact_match"], found["f1"]) == (1.0, 1.0)


@pytest.mark.parametrize(("text", "answer"), OTHER)
def test_answers_that_are_not(text: str, answer: str) -> None:
    assert not text.strip() or normalised_answer(text) != normalised_answer(answer)
    assert text_metrics([text], [answer])["exact_match"] == 0.0


def test_an_empty_text_is_never_right() -> None:
    found = text_metrics(["", " ", "\n"], ["A", "+", "the"])
    assert (found["exact_match"], found["f1"]) == (0.0, 0.0)
