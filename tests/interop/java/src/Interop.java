import io.grpc.xds.CsdsService;
import io.grpc.Server;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import java.net.InetSocketAddress;

/**
 * gRPC's Java implementation as an application without a sidecar: a client of xDS targets that calls for whoever asks it,
 * and a server that is told by xDS how to serve. Its other languages, ../go and client.py, behave alike; what they are told
 * and what they say stands in ../protocol.md.
 */
public final class Interop {
  public static void main(String[] arguments) throws Exception {
    // CSDS: what xDS resources this process has, and what became of them.
    Server statuses =
        NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 9001))
            .addService(CsdsService.newInstance())
            .build()
            .start();
    if (arguments.length == 0) {
      Client.answer();
    } else {
      Talk.serveXds(arguments[0], Integer.parseInt(arguments[1]));
    }
    statuses.awaitTermination();
  }
}
