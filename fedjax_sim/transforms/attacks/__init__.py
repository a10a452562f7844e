"""Attacks: what malicious clients send in place of their updates, or train on."""

from fedjax_sim.transforms.attacks.choice import chosen as chosen
from fedjax_sim.transforms.attacks.choice import draw_malicious as draw_malicious
from fedjax_sim.transforms.attacks.choice import malicious_of as malicious_of
from fedjax_sim.transforms.attacks.labels import flip_labels as flip_labels
from fedjax_sim.transforms.attacks.updates import alie as alie
from fedjax_sim.transforms.attacks.updates import gaussian as gaussian
from fedjax_sim.transforms.attacks.updates import ipm as ipm
from fedjax_sim.transforms.attacks.updates import sign_flip as sign_flip
