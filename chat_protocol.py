"""Les règles de la conversation, communes au serveur et au client du chat.

Sur TCP, des lignes de texte en UTF-8, finies par « \\n » :

    client → serveur    Alice                          le nom, première ligne
                        Bonjour !                      un message
                        /liste                         une commande
    serveur → client    * Bienvenue, Alice ! (…)       un avis
                        Bob : Salut                    un message
                        Bob (privé) : Psst             un message privé
                        ! Commande inconnue : /danse   une erreur

Ce module calcule, et rien de plus : des octets ou du texte entrent, des valeurs
sortent. Ni socket, ni thread, ni horloge, ni fichier, ni écran (sauf l'aide de
new_option_parser, à la fin) ; tout s'essaie donc dans un interpréteur :

    >>> from chat_protocol import LineBuffer
    >>> buffer = LineBuffer()
    >>> buffer.feed(b"Bonj")
    >>> buffer.take()
    []
    >>> buffer.feed(b"our !\\nSal")
    >>> buffer.take()
    [b'Bonjour !']
"""

import argparse
import errno
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_HOST = "127.0.0.1"  # cette machine seule : on ne s'ouvre au réseau que sur demande
DEFAULT_PORT = 12345

# --- Limites -----------------------------------------------------------------

MAX_LINE_BYTES = 4096  # octets, sans la fin de ligne : une page d'écran bien remplie
MAX_NAME_LENGTH = 32  # caractères : le nom est recopié devant chaque message
MAX_QUOTE_LENGTH = 40  # caractères d'un mot que l'on recopie dans une erreur


class Refused(Exception):
    """Ce qui a été donné n'est pas recevable ; str() dit pourquoi, en français.

    La phrase est faite pour qui a tapé : le client l'affiche, la ligne de
    commande aussi.
    """


# --- Des octets aux lignes ---------------------------------------------------


class LineBuffer:
    """Recoud les lignes d'un flux d'octets, quelle que soit sa découpe.

    TCP transporte un flux, pas des messages : un `recv` peut rendre la moitié
    d'un caractère ou mille lignes. On coupe donc les *octets* sur « \\n » et on ne
    décode qu'une ligne entière (`str.splitlines` couperait aussi sur U+2028).
    """

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._data = b""  # reçu et pas encore rendu
        self._skipping = False  # dans la suite d'une ligne trop longue, déjà rendue

    def feed(self, data: bytes) -> None:
        """Ajoute les octets que `recv` a rendus."""
        self._data += data

    def take(self, max_lines: int = -1) -> list[bytes]:
        """Rend au plus `max_lines` lignes entières (-1 : toutes), sans leur fin de ligne, et le
        début de la suivante si elle est déjà trop longue.

        D'une ligne de plus de `max_bytes` octets, on rend les `max_bytes + 1` premiers, ce qui la
        trahit ; la suite est jetée à mesure : la mémoire prise ne dépend pas de sa longueur.
        """
        if self._skipping:
            _, newline, self._data = self._data.partition(b"\n")
            self._skipping = not newline
        *lines, self._data = self._data.split(b"\n", max_lines)
        lines = [self._trim(line) for line in lines]
        if b"\n" not in self._data and len(start := self._trim(self._data)) > self.max_bytes:
            lines.append(start)
            self._data = b""
            self._skipping = True
        return lines

    def take_last(self) -> list[bytes]:
        """Rend, à la fin du flux, la dernière ligne si elle n'a pas eu de « \\n »."""
        last, self._data = self._trim(self._data), b""
        return [last] if last and not self._skipping else []

    def _trim(self, line: bytes) -> bytes:
        return line.removesuffix(b"\r")[: self.max_bytes + 1]


def decode_line(line: bytes) -> str:
    """Rend le texte d'une ligne de client (sans fin de ligne), ou lève Refused."""
    if len(line) > MAX_LINE_BYTES:
        raise Refused(f"Ligne trop longue ({MAX_LINE_BYTES} octets au plus) : coupez-la.")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("Ligne illisible : elle doit être en UTF-8.") from None


def encode_line(text: str) -> bytes:
    """Rend les octets de `text` avec sa fin de ligne.

    Un collage coupé peut laisser un demi-caractère (surrogate) qu'UTF-8 n'admet
    pas : « ? » le remplace.
    """
    return f"{text}\n".encode("utf-8", errors="replace")


# --- Le texte ----------------------------------------------------------------

BLANKS = " \t"  # ce qui ne compte pas autour d'un nom ou d'une commande
LEAVE_WORD = "exit"  # seul sur sa ligne, il fait partir : ce n'est donc le nom de personne

# Ce qui piloterait un terminal ou retournerait l'affichage : C0 (sauf la
# tabulation), DEL, C1, séparateurs de ligne et de paragraphe, sens d'écriture
# (Unicode, annexe 9).
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Rend `text` sans danger pour un terminal : U+FFFD remplace ce qui le piloterait."""
    return _UNSAFE.sub("\ufffd", text)


def quote(word: str) -> str:
    """Rend `word`, venu d'un inconnu, tel qu'on peut le recopier dans une erreur."""
    return clean(word[:MAX_QUOTE_LENGTH])


def alphabetical(names: Iterable[str]) -> list[str]:
    """Trie comme un dictionnaire : ni casse ni accents, donc Élise avant Zoé."""

    def without_accents(name: str) -> str:
        decomposed = unicodedata.normalize("NFKD", name.casefold())
        return "".join(char for char in decomposed if not unicodedata.combining(char))

    return sorted(names, key=lambda name: (without_accents(name), name))


# --- Les noms ----------------------------------------------------------------

# Caractères sans dessin (Unicode, Default_Ignorable_Code_Point) : « Al<invisible>ice »
# passerait pour « Alice ».
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def normalize_name(text: str) -> str:
    """Rend le nom écrit dans `text`, sous forme NFKC, ou lève Refused.

    Un nom ne contient ni blanc ni « : » ni parenthèse et commence par une lettre
    ou un chiffre : aucun ne peut imiter une ligne du serveur.
    """
    name = unicodedata.normalize("NFKC", text).strip(BLANKS)
    if not name:
        raise Refused("Nom vide : choisissez-en un.")
    if len(name) > MAX_NAME_LENGTH:
        raise Refused(f"Nom trop long ({MAX_NAME_LENGTH} caractères au plus) : abrégez-le.")
    if name.casefold() == LEAVE_WORD:
        raise Refused(f"Nom refusé : « {LEAVE_WORD} » sert à partir.")
    if not _is_letter_or_digit(name[0]):
        raise Refused("Nom refusé : il doit commencer par une lettre ou un chiffre.")
    for char in name:
        if not _is_allowed_in_name(char):
            raise Refused(
                f"Nom refusé : caractère interdit « {clean(char)} » (U+{ord(char):04X}) ; "
                "prenez des lettres, des chiffres et - _ . ' ’ sans espace."
            )
    return name


def _is_letter_or_digit(char: str) -> bool:
    category = unicodedata.category(char)
    return (category.startswith("L") or category == "Nd") and not _INVISIBLE.match(char)


def _is_allowed_in_name(char: str) -> bool:
    is_mark = unicodedata.category(char).startswith("M")  # accents, voyelles indiennes…
    return _is_letter_or_digit(char) or char in "-_.'’" or (is_mark and not _INVISIBLE.match(char))


def name_key(name: str) -> str:
    """Rend ce que deux écritures du même nom ont en commun (ALICE et Alice)."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", folded)  # plier la casse peut défaire la forme


# --- Les commandes -----------------------------------------------------------

# Une commande est une valeur : parse la rend, le salon du serveur l'exécute. @dataclass écrit
# __init__ et == ; frozen : elle ne change plus.


@dataclass(frozen=True)
class Message:
    text: str


@dataclass(frozen=True)
class PrivateMessage:
    recipient: str  # comme tapé, "" s'il manque
    text: str  # "" s'il manque


@dataclass(frozen=True)
class ListMembers:
    pass


@dataclass(frozen=True)
class Help:
    pass


@dataclass(frozen=True)
class Quit:
    pass


@dataclass(frozen=True)
class UnknownCommand:
    word: str  # sans danger, prêt à être recopié


Command = Message | PrivateMessage | ListMembers | Help | Quit | UnknownCommand

COMMAND_WORDS = ("/aide", "/liste", "/privé", "/quitter")  # celles que Tab complète

HELP_LINES = (
    "/liste : qui est connecté",
    "/privé NOM message : écrire à NOM seul (ou /prive, /mp)",
    "/quitter ou exit : quitter le chat (ou /exit, /quit)",
    "/aide : cette liste (ou /help)",
    "//texte : envoyer le message « /texte »",
)

def is_blank(text: str) -> bool:
    """Dit si une ligne n'a que des blancs : elle est alors ignorée."""
    return not text.strip(BLANKS)


def parse(text: str) -> Command:
    """Rend ce que veut une ligne de client (texte sans fin de ligne)."""
    bare = text.strip(BLANKS)
    if bare.casefold() == LEAVE_WORD:
        return Quit()
    if not bare.startswith("/"):
        return Message(clean(text))
    if bare.startswith("//"):
        return Message(clean(text.replace("//", "/", 1)))
    word, rest = cut_word(text)
    # NFC d'abord : un Mac peut écrire « é » en deux caractères.
    match unicodedata.normalize("NFC", word).casefold():
        case "/quitter" | "/exit" | "/quit":
            return Quit()
        case "/liste":
            return ListMembers()
        case "/aide" | "/help":
            return Help()
        case "/privé" | "/prive" | "/mp":
            recipient, message = cut_word(rest)
            return PrivateMessage(recipient, "" if is_blank(message) else clean(message))
        case _:
            return UnknownCommand(quote(word))


def cut_word(text: str) -> tuple[str, str]:
    """Rend le premier mot de `text`, et le reste sans le blanc qui les sépare."""
    return re.fullmatch(r"[ \t]*([^ \t]*)[ \t]?(.*)", text, re.DOTALL).groups()


# --- Les lignes du serveur (texte sans fin de ligne) ---------------------------


def message_line(name: str, text: str) -> str:
    return f"{name} : {text}"


def private_line(name: str, text: str) -> str:
    return f"{name} (privé) : {text}"


def notice_line(text: str) -> str:
    return f"* {text}"


def error_line(text: str) -> str:
    return f"! {text}"


def farewell_line(name: str) -> str:
    return notice_line(f"Au revoir, {name}.")


def is_farewell_line(line: str) -> bool:
    return line.startswith("* Au revoir, ")


def is_error_line(line: str) -> bool:
    return line.startswith("! ")


# --- Ce que l'on dit à qui lance les programmes --------------------------------

_REASONS = {
    errno.EACCES: "accès refusé",
    errno.ECONNREFUSED: "connexion refusée",
    errno.EHOSTUNREACH: "machine hors d'atteinte",
    errno.EINVAL: "valeur impossible",
    errno.EIO: "erreur d'entrée-sortie",
    errno.EISDIR: "c'est un dossier",
    errno.EMFILE: "trop de fichiers ouverts",
    errno.ENETUNREACH: "réseau hors d'atteinte",
    errno.ENFILE: "trop de fichiers ouverts",
    errno.ENOENT: "ce fichier ou son dossier n'existe pas",
    errno.ENOSPC: "disque plein",
    errno.EPIPE: "plus personne ne lit",
    errno.ETIMEDOUT: "pas de réponse",
}


def explain(error: OSError) -> str:
    """Rend la cause d'une erreur du système, en français pour les plus courantes."""
    return _REASONS.get(error.errno) or error.strerror or str(error)


def host_and_port(host: str, port: int) -> str:
    """Rend une adresse telle qu'on l'écrit : 127.0.0.1:12345, [::1]:12345."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def new_option_parser(description: str) -> argparse.ArgumentParser:
    """Rend un analyseur qui connaît déjà ce que les deux programmes ont en commun."""
    parser = argparse.ArgumentParser(description=description, add_help=False, allow_abbrev=False)
    parser.error = _refuse_options
    parser.add_argument("--help", action="help", help="affiche cette aide et s'arrête")
    parser.add_argument(
        "--hote", metavar="ADRESSE", type=_host, default=DEFAULT_HOST,
        help="adresse du serveur (%(default)s par défaut)",
    )
    parser.add_argument(
        "--port", metavar="PORT", default=DEFAULT_PORT,
        type=lambda text: whole_number(text, "--port", 0, 65535),
        help="port du serveur (%(default)s par défaut)",
    )
    return parser


def whole_number(text: str, option: str, low: int, high: int = 1_000_000) -> int:
    """Rend le nombre écrit dans `text`, de `low` à `high` compris, ou lève Refused."""
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise Refused(
            f"{option} : il faut un nombre entier de {low} à {high}, pas « {quote(text)} »."
        )
    return int(text)


def _host(text: str) -> str:
    if is_blank(text):
        raise Refused("--hote : il faut une adresse (127.0.0.1, par exemple).")
    return text


def _refuse_options(message: str) -> None:
    # argparse ne parle qu'anglais ici : sa phrase n'est pas montrée.
    raise Refused("Option inconnue ou incomplète : --help montre celles qui existent.")
