import io.grpc.InsecureServerCredentials;
import io.grpc.MethodDescriptor;
import io.grpc.ServerServiceDefinition;
import io.grpc.stub.ServerCalls;
import io.grpc.xds.XdsServerBuilder;
import io.grpc.xds.XdsServerCredentials;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;

/** The service: messages are bytes, every method answers with the server's name. */
final class Talk {
  private static final MethodDescriptor.Marshaller<byte[]> BYTES =
      new MethodDescriptor.Marshaller<>() {
        @Override
        public InputStream stream(byte[] message) {
          return new ByteArrayInputStream(message);
        }

        @Override
        public byte[] parse(InputStream stream) {
          try {
            return stream.readAllBytes();
          } catch (IOException error) {
            throw new UncheckedIOException(error);
          }
        }
      };

  static MethodDescriptor<byte[], byte[]> method(String name) {
    return MethodDescriptor.newBuilder(BYTES, BYTES)
        .setType(MethodDescriptor.MethodType.UNARY)
        .setFullMethodName("heddle.test.Talk/" + name)
        .build();
  }

  /** Answers on all addresses as the control plane says. */
  static void serveXds(String name, int port) throws IOException {
    byte[] answer = name.getBytes(StandardCharsets.UTF_8);
    ServerServiceDefinition.Builder service = ServerServiceDefinition.builder("heddle.test.Talk");
    for (String method : new String[] {"Say", "Ask"}) {
      service.addMethod(
          method(method),
          ServerCalls.asyncUnaryCall(
              (request, response) -> {
                response.onNext(answer);
                response.onCompleted();
              }));
    }
    XdsServerBuilder.forPort(port, XdsServerCredentials.create(InsecureServerCredentials.create()))
        .xdsServingStatusListener(
            new XdsServerBuilder.XdsServingStatusListener() {
              @Override
              public void onServing() {
                System.out.println("ready");
              }

              @Override
              public void onNotServing(Throwable error) {
                System.out.println("not serving: " + error);
              }
            })
        .addService(service.build())
        .build()
        .start();
  }
}
