//! Keys and signatures of openssl, for the tests of [`super`]. They protect nothing.

pub(super) const P256_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgIrTYfTeBfbwkX5G6
x4Q6wt9EAbgDtng1tbu2GNOHvaihRANCAASO5NGrb2FPgUbF6OHcdVvtEA0arDRz
fqVmrZuwc3i1FHsDUw8N7E/bZDTMhksbY7HsHkDFp5ne5mdKgp1bHqJl
-----END PRIVATE KEY-----";
pub(super) const P256_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEjuTRq29hT4FGxejh3HVb7RANGqw0
c36lZq2bsHN4tRR7A1MPDexP22Q0zIZLG2Ox7B5AxaeZ3uZnSoKdWx6iZQ==
-----END PUBLIC KEY-----";
pub(super) const P256_SIGNATURE: &str =
    "MEUCIGs9ESC+MivLZ5FesUYBhqxAdSIYhek/LguiVDbAp811AiEArb9mYU9HTLE+OrCssEMxMl2NlrOEYH4tW5qsLc1FtBM=";
pub(super) const ED25519_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINlwON+2Ds8ifAGNI4M9lIn5Ezi+AuEwW/PzM5KUV9Sn
-----END PRIVATE KEY-----";
pub(super) const ED25519_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA/zLW+a3xe2tUVOA7w1DewNBTeAPdouw4rP0spb61ZhA=
-----END PUBLIC KEY-----";
pub(super) const ED25519_SIGNATURE: &str =
    "IAV3k6tgfCc16bldIIzW+7JI6NNJUEc3BqXNNCBvUEYljR1XgY+l0VNguBhxWK4CkT+mraJsX4v/66VtOViHBw==";
