//! Responses as bytes: the messages of `discovery.proto` written around resources that are encoded already, and the tonic
//! codec that does it. Nothing is encoded twice: a resource's bytes are shared by every stream and only copied into the
//! transport's buffer.
//!
//! Only what our servers send is here; requests are read by prost. Called by [`crate::server`].

use std::marker::PhantomData;

use bytes::BufMut;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::resource::{Kind, Resource};
use crate::{delta, sotw};

/// A message that writes itself.
pub(crate) trait Wire: Send + 'static {
    /// The length of the encoding, in bytes.
    fn encoded_len(&self) -> usize;

    /// Appends the encoding.
    fn encode(&self, buffer: &mut impl BufMut);
}

/// `DeltaDiscoveryResponse`: resources = 2, type_url = 4, nonce = 5, removed_resources = 6.
impl Wire for delta::server::Response {
    fn encoded_len(&self) -> usize {
        let resources = self.resources.iter().map(|resource| field_len(2, delta_resource_len(self.kind, resource)));
        let removed = self.removed.iter().map(|name| field_len(6, name.len()));
        resources.sum::<usize>()
            + field_len(4, self.kind.type_url().len())
            + field_len(5, self.nonce.len())
            + removed.sum::<usize>()
    }

    fn encode(&self, buffer: &mut impl BufMut) {
        for resource in &self.resources {
            put_header(2, delta_resource_len(self.kind, resource), buffer);
            put_delta_resource(self.kind, resource, buffer);
        }
        put_field(4, self.kind.type_url().as_bytes(), buffer);
        put_field(5, self.nonce.as_bytes(), buffer);
        for name in &self.removed {
            put_field(6, name.as_bytes(), buffer);
        }
    }
}

/// `DiscoveryResponse`: version_info = 1, resources = 2, type_url = 4, nonce = 5.
impl Wire for sotw::server::Response {
    fn encoded_len(&self) -> usize {
        let resources = self.resources.iter().map(|resource| field_len(2, any_len(self.kind, resource)));
        field_len(1, self.version.len())
            + resources.sum::<usize>()
            + field_len(4, self.kind.type_url().len())
            + field_len(5, self.nonce.len())
    }

    fn encode(&self, buffer: &mut impl BufMut) {
        put_field(1, self.version.as_bytes(), buffer);
        for resource in &self.resources {
            put_header(2, any_len(self.kind, resource), buffer);
            put_any(self.kind, resource, buffer);
        }
        put_field(4, self.kind.type_url().as_bytes(), buffer);
        put_field(5, self.nonce.as_bytes(), buffer);
    }
}

/// `envoy.service.discovery.v3.Resource`: version = 1, resource = 2, name = 3.
fn put_delta_resource(kind: Kind, resource: &Resource, buffer: &mut impl BufMut) {
    put_field(1, resource.version.as_bytes(), buffer);
    put_header(2, any_len(kind, resource), buffer);
    put_any(kind, resource, buffer);
    put_field(3, resource.name.as_bytes(), buffer);
}

fn delta_resource_len(kind: Kind, resource: &Resource) -> usize {
    field_len(1, resource.version.len()) + field_len(2, any_len(kind, resource)) + field_len(3, resource.name.len())
}

/// `google.protobuf.Any`: type_url = 1, value = 2.
fn put_any(kind: Kind, resource: &Resource, buffer: &mut impl BufMut) {
    put_field(1, kind.type_url().as_bytes(), buffer);
    put_field(2, &resource.bytes, buffer);
}

fn any_len(kind: Kind, resource: &Resource) -> usize {
    field_len(1, kind.type_url().len()) + field_len(2, resource.bytes.len())
}

fn put_field(tag: u32, content: &[u8], buffer: &mut impl BufMut) {
    put_header(tag, content.len(), buffer);
    buffer.put_slice(content);
}

fn put_header(tag: u32, content_bytes: usize, buffer: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(content_bytes as u64, buffer);
}

fn field_len(tag: u32, content_bytes: usize) -> usize {
    key_len(tag) + encoded_len_varint(content_bytes as u64) + content_bytes
}

/// Reads requests `Req` with prost, writes responses `Res` as they are.
#[derive(Debug)]
pub(crate) struct WireCodec<Req, Res>(PhantomData<fn() -> (Req, Res)>);

impl<Req, Res> WireCodec<Req, Res> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<Req: Message + Default + 'static, Res: Wire> Codec for WireCodec<Req, Res> {
    type Encode = Res;
    type Decode = Req;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        Self::new()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self::new()
    }
}

impl<Req: 'static, Res: Wire> Encoder for WireCodec<Req, Res> {
    type Item = Res;
    type Error = Status;

    fn encode(&mut self, response: Res, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(response.encoded_len());
        response.encode(buffer);
        Ok(())
    }
}

impl<Req: Message + Default + 'static, Res: 'static> Decoder for WireCodec<Req, Res> {
    type Item = Req;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Req>, Status> {
        Req::decode(buffer)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("request does not decode: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use envoy_types::pb::envoy::service::discovery::v3::{self as pb, DeltaDiscoveryResponse, DiscoveryResponse};
    use envoy_types::pb::google::protobuf::Any;
    use proptest::prelude::*;

    use super::*;

    fn resources() -> impl Strategy<Value = Vec<Resource>> {
        let bytes = prop::collection::vec(any::<u8>(), 0..300);
        prop::collection::vec(
            ("\\PC{0,200}", bytes).prop_map(|(name, bytes)| Resource::from_bytes(name, Bytes::from(bytes), [])),
            0..4,
        )
    }

    fn as_any(kind: Kind, resource: &Resource) -> Any {
        Any { type_url: kind.type_url().into(), value: resource.bytes.to_vec() }
    }

    fn written(response: &impl Wire) -> Vec<u8> {
        let mut bytes = Vec::new();
        response.encode(&mut bytes);
        assert_eq!(bytes.len(), response.encoded_len());
        bytes
    }

    proptest! {
        #[test]
        fn an_incremental_response_is_read_by_prost(resources in resources(), removed in prop::collection::vec("\\PC*", 0..3)) {
            let kind = Kind::Route;
            let response = delta::server::Response {
                kind,
                nonce: "7".into(),
                resources: resources.clone(),
                removed: removed.iter().map(|name| name.as_str().into()).collect(),
            };

            let read = DeltaDiscoveryResponse::decode(&*written(&response)).unwrap();

            prop_assert_eq!(read, DeltaDiscoveryResponse {
                resources: resources
                    .iter()
                    .map(|resource| pb::Resource {
                        name: resource.name.to_string(),
                        version: resource.version.to_string(),
                        resource: Some(as_any(kind, resource)),
                        ..Default::default()
                    })
                    .collect(),
                type_url: kind.type_url().into(),
                removed_resources: removed,
                nonce: "7".into(),
                ..Default::default()
            });
        }

        #[test]
        fn a_full_state_response_is_read_by_prost(resources in resources()) {
            let kind = Kind::Listener;
            let response = sotw::server::Response { kind, version: "v".into(), nonce: "7".into(), resources: resources.clone() };

            let read = DiscoveryResponse::decode(&*written(&response)).unwrap();

            prop_assert_eq!(read, DiscoveryResponse {
                version_info: "v".into(),
                resources: resources.iter().map(|resource| as_any(kind, resource)).collect(),
                type_url: kind.type_url().into(),
                nonce: "7".into(),
                ..Default::default()
            });
        }
    }
}
