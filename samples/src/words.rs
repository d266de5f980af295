//! The words that records are made of: invented people, domains kept for documentation (RFC 2606).

/// First name as written, and as in a mail address.
pub(crate) const FIRST_NAMES: [(&str, &str); 16] = [
    ("Zoë", "zoe"),
    ("Łukasz", "lukasz"),
    ("Jürgen", "juergen"),
    ("Aiko", "aiko"),
    ("Chloé", "chloe"),
    ("Søren", "soren"),
    ("Ana", "ana"),
    ("Дмитрий", "dmitri"),
    ("Eleni", "eleni"),
    ("小明", "xiaoming"),
    ("Fatima", "fatima"),
    ("Ingrid", "ingrid"),
    ("Noah", "noah"),
    ("Priya", "priya"),
    ("Mateo", "mateo"),
    ("Siobhán", "siobhan"),
];

/// Last name as written, and as in a mail address.
pub(crate) const LAST_NAMES: [(&str, &str); 16] = [
    ("Müller", "mueller"),
    ("Nowak", "nowak"),
    ("Ó Briain", "obriain"),
    ("Tanaka", "tanaka"),
    ("García-López", "garcialopez"),
    ("Østergård", "ostergard"),
    ("Papadopoulou", "papadopoulou"),
    ("Иванов", "ivanov"),
    ("王", "wang"),
    ("van der Berg", "vanderberg"),
    ("Haddad", "haddad"),
    ("D'Angelo", "dangelo"),
    ("Smith", "smith"),
    ("Kapoor", "kapoor"),
    ("Fernández", "fernandez"),
    ("Žižek", "zizek"),
];

pub(crate) const DOMAINS: [&str; 4] = ["example.com", "example.org", "mail.example.net", "post.example"];
pub(crate) const TENANTS: [&str; 4] = ["acme", "globex", "initech", "umbrella"];
/// Country and locale.
pub(crate) const COUNTRIES: [(&str, &str); 6] = [
    ("DE", "de-DE"),
    ("FR", "fr-FR"),
    ("PL", "pl-PL"),
    ("JP", "ja-JP"),
    ("IE", "en-IE"),
    ("ES", "es-ES"),
];
pub(crate) const CURRENCIES: [&str; 4] = ["EUR", "PLN", "DKK", "USD"];

/// Brand, prefix in the ranges that payment providers use for tests, digits.
pub(crate) const BRANDS: [(&str, &str, usize); 4] = [
    ("visa", "411111", 16),
    ("mastercard", "555555", 16),
    ("amex", "378282", 15),
    ("discover", "601111", 16),
];

pub(crate) const PATHS: [&str; 6] = [
    "/",
    "/products/lamp?ref=mail",
    "/basket",
    "/checkout/pay",
    "/account/orders",
    "/search?q=gr%C3%BCn&page=2",
];

pub(crate) const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:134.0) Gecko/20100101 Firefox/134.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.2 Safari/605.1.15",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Mobile Safari/537.36",
    "shop-app/7.14 (iOS 18.2; \\\"tablet\\\")",
];

/// City, latitude, longitude.
pub(crate) const CITIES: [(&str, &str, &str); 6] = [
    ("Köln", "50.9375", "6.9603"),
    ("Kraków", "50.0647", "19.9450"),
    ("東京", "35.6764", "139.6500"),
    ("Århus", "56.1629", "10.2039"),
    ("Σύρος", "37.4500", "24.9000"),
    ("La Coruña", "43.3623", "-8.4115"),
];

pub(crate) const SKUS: [&str; 5] = [
    "lamp-17",
    "chair-oak",
    "mug-blau",
    "desk-140x80",
    "plant-\\u00e9t\\u00e9",
];

/// Free text as JSON spells it: escapes that are needed, escapes that are not, emoji.
pub(crate) const NOTES: [&str; 6] = [
    "delivered to neighbour",
    "gift 🎁 wrap, no price tag",
    "said \\\"call first\\\"\\nback door",
    "tab\\there, slash \\/ there",
    "",
    "r\\u00e9p\\u00e9ter demain s'il vous pla\\u00eet",
];
