"""Values of every base type: the extremes, the odd ones, and those that text, JSON or floats easily spoil."""

from __future__ import annotations

import random

_SEED = random.Random(20_260_301)
_LONG = "".join(_SEED.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6000))
_BYTES = _SEED.randbytes(6000).hex()
_TEXTS = [
    "",
    " ",
    "NULL",
    "null",
    "\\N",
    "\\",
    '"',
    "'",
    ",",
    "{}",
    "(a,b)",
    "a\tb\nc\rd",
    "\x01",
    "é漢😀",
    " a  ",
    _LONG,
]
_JSON = [
    "null",
    '""',
    "{}",
    "[]",
    '{"b": [1, 2.50, 1e3], "a": "é\\"\\\\😀", "": null}',
    "1" + "0" * 400 + ".10",
    "-0.0",
    "1e-320",
    '"\\u00e9\\n"',
    f'{{"long": "{_LONG}"}}',
]
_REG = ["-", "4294967295"]


# fmt: off
VALUES: dict[str, list[str]] = {
    # numbers
    "bool": ["t", "f"],
    "int2": ["0", "1", "-1", "32767", "-32768"],
    "int4": ["0", "1", "-1", "2147483647", "-2147483648"],
    "int8": ["0", "1", "-1", "9223372036854775807", "-9223372036854775808"],
    "oid": ["0", "1", "16384", "4294967295"],
    "float4": ["0", "-0", "0.1", "1e-45", "1.17549435e-38", "3.4028235e38", "16777217", "NaN", "inf", "-inf"],
    "float8": ["0", "-0", "0.1", "5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "1e22", "NaN", "inf",
               "-inf", "0.30000000000000004"],
    "numeric": ["0", "0.000", "-1.10", "1e-7", "1e-16383", "9" * 1000 + "." + "1" * 1000, "-" + "7" * 1000, "1e5000",
                "NaN", "Infinity", "-Infinity", "12345678901234567890.123456789", "10000", "0.00010000"],
    "money": ["0", "1.10", "-92233720368547758.08", "92233720368547758.07", "-0.01"],
    # text
    "text": _TEXTS, "varchar": _TEXTS, "bpchar": [*_TEXTS, "trailing   "], "citext": [*_TEXTS, "Ab", "aB"],
    "name": ["", "pg_class", "x" * 63, 'q"u o', "é"],
    "char": ["", "a", '"', "\\", "\\001", " "],
    "refcursor": ["", "cursor"],
    "bytea": ["\\x", "\\x00", "\\x00ff5c2200", "\\x5c", f"\\x{_BYTES}"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
             "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "bit": ["0", "1"],
    "varbit": ["", "0", "10101", "1" * 100],
    "xml": ["<a>é</a>", "plain", '<?xml version="1.0"?><a b="c"/>', ""],
    "json": [*_JSON, '{"a" :  1, "a": "twice"}', '"\\u0000"', "1e999", " [ ] "],
    "jsonb": _JSON,
    "jsonpath": ["$", 'strict $."a"[*] ? (@ > 1)'],
    # moments
    "date": ["1970-01-01", "2000-01-01", "4714-11-24 BC", "0001-12-31 BC", "5874897-12-31", "infinity", "-infinity"],
    "time": ["00:00", "24:00", "23:59:59.999999", "00:00:00.000001"],
    "timetz": ["00:00+15:59", "24:00-15:59", "12:30:00.5+05:30:15", "23:59:59.999999Z"],
    "timestamp": ["1970-01-01", "4714-11-24 BC", "0044-03-15 00:00:00.5 BC", "294246-12-31 23:59:59.999999", "infinity",
                  "-infinity", "1969-12-31 23:59:59.999999"],
    "timestamptz": ["1970-01-01 00:00Z", "4714-11-24 00:00Z BC", "0044-03-15 00:00:00.5Z BC", "infinity", "-infinity",
                    "294246-12-31 23:59:59.999999Z", "2024-03-31 02:30:00+02"],
    "interval": ["0", "1 year 2 mons -3 days 04:05:06.789", "-1 mon", "-00:00:00.000001", "178000000 years",
                 "1 mon -1 day", "2000000 hours", "-178000000 years 2147483647 days"],
    # network, geometry, search
    "inet": ["10.0.0.1", "10.0.0.1/8", "0.0.0.0/0", "::1", "::ffff:1.2.3.4/96", "2001:db8::/32"],
    "cidr": ["10.0.0.0/8", "10.0.0.1/32", "::/0", "2001:db8::/32"],
    "macaddr": ["00:00:00:00:00:00", "08:00:2b:01:02:03"],
    "macaddr8": ["00:00:00:00:00:00:00:00", "08:00:2b:01:02:03:04:05"],
    "point": ["(0,0)", "(-0,0.1)", "(1e308,5e-324)", "(NaN,Infinity)"],
    "lseg": ["[(0,0),(1,1)]"], "box": ["(1,1),(0,0)", "(1e308,0.1),(-0,-1)"], "line": ["{1,2,3}"],
    "path": ["[(0,0),(1,1)]", "((0,0),(1,1),(0.1,2))"], "polygon": ["((0,0),(1,1),(1,0))"],
    "circle": ["<(0,0),5>", "<(0.1,-2),0>"],
    "tsvector": ["", "'a':1A,2B 'b c':3 'it''s'"], "tsquery": ["", "'a' & !('b' <-> 'c':*AB)"],
    # of the server itself
    "xid": ["0", "4294967295"], "cid": ["0", "4294967295"], "xid8": ["0", "18446744073709551615"],
    "tid": ["(0,1)", "(4294967295,65535)"], "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"],
    "txid_snapshot": ["10:20:10,14,15", "1:1:"], "pg_snapshot": ["10:20:10,14,15", "1:1:"],
    "int2vector": ["", "1", "1 -2 3"], "oidvector": ["", "1", "1 2 4294967295"],
    "regclass": [*_REG, "pg_class", "information_schema.tables"], "regproc": [*_REG, "now"],
    "regprocedure": [*_REG, "now()"], "regoper": ["0", "4294967295"], "regoperator": ["0", "=(int4,int4)"],
    "regtype": [*_REG, "integer", "character varying[]"], "regrole": _REG, "regnamespace": [*_REG, "public"],
    "regconfig": [*_REG, "english"], "regdictionary": [*_REG, "simple"], "regcollation": [*_REG, '"C"'],
    "regdatabase": [*_REG, "postgres"],
    # of extensions
    "hstore": ["", '"a"=>"1", "b"=>NULL, "c d"=>"\\"\\\\"'],
    "ltree": ["", "a.b.c"], "lquery": ["*.a|b.*{1,3}"], "ltxtquery": ["a & !b"],
    "vector": ["[0]", "[1,-2.5,1e-38]"], "halfvec": ["[1,-2.5]"], "sparsevec": ["{1:1.5,3:-2}/5", "{}/3"],
    "cube": ["(0)", "(1,2.5),(3,4)"], "seg": ["1.5", "<1.50 .. 2.0", "3 .."], "query_int": ["1&(2|!3)"],
    "ean13": ["978-0-306-40615-7"], "isbn13": ["978-0-306-40615-7"], "isbn": ["0-306-40615-2"],
    "issn13": ["977-1436-452-00-8"], "issn": ["1436-4522"], "ismn13": ["979-0-060-11561-5"],
    "ismn": ["979-0-060-11561-5"], "upc": ["036000291452"],
    # domains that admit little
    "yes_or_no": ["YES", "NO"], "earth": ["(0)", "(6378168,0,0)"],
}
# fmt: on

# Types whose values only the server makes: an expression for one.
MADE: dict[str, str] = {
    "aclitem": "(acldefault('r', (select min(oid) from pg_roles)))[1]",
    "pg_node_tree": "(select adbin from pg_attrdef limit 1)",
    "pg_ndistinct": "(select stxdndistinct from pg_statistic_ext_data where stxdndistinct is not null limit 1)",
    "pg_dependencies": "(select stxddependencies from pg_statistic_ext_data where stxddependencies is not null limit 1)",
    "pg_mcv_list": "(select stxdmcv from pg_statistic_ext_data where stxdmcv is not null limit 1)",
}

# Types that only the inside of an index holds: no statement gives a value of them, so a column of them is always null.
INSIDE_OF_INDEXES = frozenset(
    {"gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "ghstore", "ltree_gist", "gtrgm"}
    | {"intbig_gkey", "gbtreekey2", "gbtreekey4", "gbtreekey8", "gbtreekey16", "gbtreekey32", "gbtreekey_var"}
)
