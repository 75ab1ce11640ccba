//! Two rustls peers in memory with this crate's configurations: who is believed, who is not, and what a resumed
//! session still has to prove.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_certs::bundle::Bundle;
use heddle_certs::ca::{Authority, ROOT_LIFETIME};
use heddle_certs::credential::Identity;
use heddle_certs::csr::{Csr, KeyRequest};
use heddle_certs::identity::{SpiffeId, TrustDomain};
use heddle_certs::verify::{self, ClientAuth};
use heddle_certs::{peer, tls};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig, ServerConnection,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// The clock rustls itself reads: handshakes cannot be given another.
fn now() -> SystemTime {
    SystemTime::now()
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn authority(trust_domain: &str) -> Authority {
    Authority::generate(&domain(trust_domain), ROOT_LIFETIME, now() - Duration::from_secs(3600)).unwrap()
}

fn identity_at(authority: &Authority, account: &str, at: SystemTime, life: Duration) -> Identity {
    let id = SpiffeId::new(authority.trust_domain(), "shop", account).unwrap();
    let request = KeyRequest::generate(&id).unwrap();
    let signed = authority.sign(&Csr::from_der(&request.csr).unwrap(), &id, life, at).unwrap();
    Identity::new(signed.chain, request.key).unwrap()
}

fn identity(authority: &Authority, account: &str) -> Identity {
    identity_at(authority, account, now(), Duration::from_secs(3600))
}

fn bundle(authority: &Authority) -> Arc<Bundle> {
    Arc::new(Bundle::new(authority.trust_domain().clone(), [authority.root().clone()]).unwrap())
}

fn only(identity: &Identity) -> Arc<[SpiffeId]> {
    Arc::new([identity.id().clone()])
}

fn server(identity: &Identity, roots: &Authority) -> Arc<ServerConfig> {
    Arc::new(tls::server_config(identity, bundle(roots), ClientAuth::Required).unwrap())
}

fn client(identity: &Identity, roots: &Authority, expected: &Identity) -> Arc<ClientConfig> {
    Arc::new(tls::client_config(identity, bundle(roots), only(expected)).unwrap())
}

/// Moves bytes both ways until both are done or one refuses.
fn connect(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    // Four flights of TLS 1.3 and its tickets, with room.
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |read| server.read_tls(read))?;
        server.process_new_packets()?;
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |read| client.read_tls(read))?;
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn feed(
    mut bytes: &[u8],
    mut read: impl FnMut(&mut dyn std::io::Read) -> std::io::Result<usize>,
) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        read(&mut bytes).unwrap();
    }
    Ok(())
}

fn refusal(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> String {
    let error = connect(client, server).expect_err("the handshake must be refused");
    verify::reason(&error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn chain_error(verdict: Result<verify::Peer, verify::Error>) -> webpki::Error {
    match verdict {
        Err(verify::Error::Chain { error, .. }) => *error,
        other => panic!("not a refused chain: {other:?}"),
    }
}

/// A leaf outside the profile, signed by `authority` all the same.
fn odd(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> (Vec<CertificateDer<'static>>, KeyPair) {
    let signing = KeyPair::from_pem(&authority.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(authority.root(), signing).unwrap();
    let mut params = CertificateParams::default();
    params.not_before = (now() - Duration::from_secs(60)).into();
    params.not_after = (now() + Duration::from_secs(3600)).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/cart")];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (vec![params.signed_by(&key, &issuer).unwrap().der().clone()], key)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn two_sidecars_agree_on_tls_13_with_the_hybrid_group_and_know_each_other() {
    let ca = authority("cluster.local");
    let (cart, web) = (identity(&ca, "cart"), identity(&ca, "web"));
    let (client, server) = connect(&client(&web, &ca, &cart), &server(&cart, &ca)).unwrap();

    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    let seen = verify::peer_identity(server.peer_certificates().unwrap()).unwrap();
    assert_eq!(&seen, web.peer());
    assert_eq!(verify::peer_identity(client.peer_certificates().unwrap()).unwrap().id, *cart.id());
}

#[test]
fn a_server_that_is_somebody_else_is_refused_by_name() {
    let ca = authority("cluster.local");
    let (cart, web) = (identity(&ca, "cart"), identity(&ca, "web"));
    let error = refusal(&client(&web, &ca, &cart), &server(&web, &ca));
    let names = "server is `spiffe://cluster.local/ns/shop/sa/web`; expected `spiffe://cluster.local/ns/shop/sa/cart`";
    assert_eq!(error, names);
}

#[test]
fn an_empty_set_of_expected_identities_believes_nobody() {
    let ca = authority("cluster.local");
    let cart = identity(&ca, "cart");
    let config = Arc::new(tls::client_config(&cart, bundle(&ca), Arc::new([])).unwrap());
    assert!(refusal(&config, &server(&cart, &ca)).contains("expected nobody"));
}

#[test]
fn a_client_of_another_root_is_refused() {
    let (ca, stranger) = (authority("cluster.local"), authority("cluster.local"));
    let (cart, web) = (identity(&ca, "cart"), identity(&stranger, "web"));
    assert!(refusal(&client(&web, &ca, &cart), &server(&cart, &ca)).contains("UnknownIssuer"));
}

#[test]
fn a_client_of_another_trust_domain_is_refused_even_under_our_root() {
    let ca = authority("cluster.local");
    let (chain, key) = odd(&ca, |params| params.subject_alt_names = vec![uri("spiffe://other/ns/shop/sa/cart")]);
    let foreign = Identity::new(chain, PrivateKeyDer::from(key)).unwrap();
    let cart = identity(&ca, "cart");
    assert!(
        refusal(&client(&foreign, &ca, &cart), &server(&cart, &ca)).contains("is not of trust domain `cluster.local`")
    );
}

#[test]
fn a_client_without_a_certificate_is_refused_where_one_is_required_and_served_where_not() {
    let ca = authority("cluster.local");
    let cart = identity(&ca, "cart");
    let bare = Arc::new(tls::bootstrap_client_config(bundle(&ca), only(&cart)).unwrap());
    connect(&bare, &server(&cart, &ca)).expect_err("no certificate");
    let optional = Arc::new(tls::server_config(&cart, bundle(&ca), ClientAuth::Optional).unwrap());
    let (_, served) = connect(&bare, &optional).unwrap();
    assert!(served.peer_certificates().is_none());
}

#[test]
fn an_expired_leaf_is_refused_on_both_sides() {
    let ca = authority("cluster.local");
    let expired = identity_at(&ca, "cart", now() - Duration::from_secs(600), Duration::from_secs(60));
    let web = identity(&ca, "web");
    assert!(refusal(&client(&expired, &ca, &web), &server(&web, &ca)).contains("expired"));
    assert!(refusal(&client(&web, &ca, &expired), &server(&expired, &ca)).contains("expired"));
}

#[test]
fn leaves_outside_the_profile_are_refused() {
    let ca = authority("cluster.local");
    let roots = bundle(&ca);
    let verdict = |change: &dyn Fn(&mut CertificateParams)| {
        let (chain, _) = odd(&ca, change);
        verify::recheck(&chain, &roots, now())
    };
    let id = "spiffe://cluster.local/ns/shop/sa/cart";
    verdict(&|_| {}).unwrap();
    let two = verdict(&|params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/admin")));
    assert!(matches!(two, Err(verify::Error::Leaf(peer::Error::Uris { count: 2, .. }))));
    let same = verdict(&|params| params.subject_alt_names.push(uri(id)));
    assert!(matches!(same, Err(verify::Error::Leaf(peer::Error::Uris { count: 2, .. }))));
    let none = verdict(&|params| params.subject_alt_names.clear());
    assert!(matches!(none, Err(verify::Error::Leaf(peer::Error::Uris { count: 0, .. }))));
    let other = verdict(&|params| params.subject_alt_names = vec![uri("spiffe://cluster.local/web")]);
    assert!(matches!(other, Err(verify::Error::Leaf(peer::Error::Identity { .. }))));
    let signer = verdict(&|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert!(matches!(signer, Err(verify::Error::Leaf(peer::Error::Authority { .. }))));
    let unusable = verdict(&|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    assert!(matches!(unusable, Err(verify::Error::Leaf(peer::Error::KeyUsage { .. }))));
    let server_only = verdict(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(matches!(server_only, Err(verify::Error::Chain { .. })));
}

#[test]
fn a_session_is_resumed_and_its_chain_refused_once_the_root_is_removed() {
    let (old, new) = (authority("cluster.local"), authority("cluster.local"));
    let (cart, web) = (identity(&old, "cart"), identity(&old, "web"));
    let (client, server) = (client(&web, &old, &cart), server(&cart, &old));
    let (first, _) = connect(&client, &server).unwrap();
    assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));

    let (dialled, accepted) = connect(&client, &server).unwrap();
    assert_eq!(accepted.handshake_kind(), Some(HandshakeKind::Resumed));
    let chain = accepted.peer_certificates().unwrap();
    verify::recheck(chain, &bundle(&old), now()).unwrap();
    let removed = verify::recheck(chain, &bundle(&new), now());
    assert_eq!(chain_error(removed), webpki::Error::UnknownIssuer);

    let chain = dialled.peer_certificates().unwrap();
    verify::recheck_server(chain, &bundle(&old), &only(&cart), now()).unwrap();
    assert!(verify::recheck_server(chain, &bundle(&new), &only(&cart), now()).is_err());
    let unexpected = verify::recheck_server(chain, &bundle(&old), &only(&web), now());
    assert!(matches!(unexpected, Err(verify::Error::Unexpected { .. })));
}

#[test]
fn a_resumed_peers_leaf_that_expired_meanwhile_is_refused() {
    let ca = authority("cluster.local");
    let (cart, web) = (identity(&ca, "cart"), identity_at(&ca, "web", now(), Duration::from_secs(60)));
    let (client, server) = (client(&web, &ca, &cart), server(&cart, &ca));
    connect(&client, &server).unwrap();
    let (_, accepted) = connect(&client, &server).unwrap();
    assert_eq!(accepted.handshake_kind(), Some(HandshakeKind::Resumed));
    let chain = accepted.peer_certificates().unwrap();
    verify::recheck(chain, &bundle(&ca), now()).unwrap();
    let later = verify::recheck(chain, &bundle(&ca), now() + Duration::from_secs(61));
    assert!(matches!(chain_error(later), webpki::Error::CertExpired { .. }));
}

#[test]
fn tickets_die_with_the_servers_configuration() {
    let ca = authority("cluster.local");
    let (cart, web) = (identity(&ca, "cart"), identity(&ca, "web"));
    let client = client(&web, &ca, &cart);
    connect(&client, &server(&cart, &ca)).unwrap();
    let (_, accepted) = connect(&client, &server(&cart, &ca)).unwrap();
    assert_eq!(accepted.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn sessions_die_with_the_clients_configuration() {
    let ca = authority("cluster.local");
    let (cart, web) = (identity(&ca, "cart"), identity(&ca, "web"));
    let server = server(&cart, &ca);
    connect(&client(&web, &ca, &cart), &server).unwrap();
    let (dialled, _) = connect(&client(&web, &ca, &cart), &server).unwrap();
    assert_eq!(dialled.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn tickets_live_an_hour_at_most() {
    let ca = authority("cluster.local");
    let config = server(&identity(&ca, "cart"), &ca);
    assert!(config.ticketer.enabled());
    assert_eq!(config.ticketer.lifetime(), 3600);
}

#[test]
fn an_ended_root_is_no_anchor_any_more() {
    let short = Authority::generate(&domain("cluster.local"), Duration::from_secs(600), now()).unwrap();
    let (chain, _) = odd(&short, |_| {});
    let roots = bundle(&short);
    verify::recheck(&chain, &roots, now()).unwrap();
    // The leaf is valid for an hour, its root for ten minutes.
    assert!(verify::recheck(&chain, &roots, now() + Duration::from_secs(601)).is_err());
}
