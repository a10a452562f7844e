"""Claims of papers that are cheap to check: each is a sweep, and says whether the claim holds."""

from fedjax_sim.reproduce.claims.claim import Claim as Claim
from fedjax_sim.reproduce.claims.claim import Verdict as Verdict
from fedjax_sim.reproduce.claims.fairness import FAIRNESS
from fedjax_sim.reproduce.claims.label_skew import LABEL_SKEW
from fedjax_sim.reproduce.claims.local_work import CLAIMS as LOCAL_WORK
from fedjax_sim.reproduce.claims.objective import OBJECTIVE

NAME = "claims"
HEADING = "Claims that are cheap to check: each is one sweep on data that ship or are generated"
CLAIMS = (OBJECTIVE, *LOCAL_WORK, FAIRNESS, LABEL_SKEW)
