// One service, one volume, both stores on it. Belongs at .railway/railway.ts in the bot's repository.
// npm install railway; railway config plan; railway config apply
import { defineRailway, github, preserve, project, service, volume } from "railway/iac";

export default defineRailway(() => {
  const data = volume("nescordbot-data", { sizeMB: 5000 });

  const bot = service("nescordbot", {
    source: github("YOUR_NAME/NescordBot"),
    env: {
      // preserve() keeps what Railway already holds: no secret stands in this file.
      DISCORD_TOKEN: preserve(),
      OPENAI_API_KEY: preserve(),
      GEMINI_API_KEY: preserve(),
      DATABASE_URL: "sqlite:////app/data/nescordbot.db", // four slashes, nothing behind the name
      CHROMADB_PERSIST_DIRECTORY: "/app/data/chromadb",
      CHROMADB_COLLECTION_NAME: "nescord_knowledge",
      CHROMADB_DISTANCE_METRIC: "cosine",
      EMBEDDING_DIMENSION: "768",
      PKM_ENABLED: "true",
      RAILWAY_DEPLOYMENT_DRAINING_SECONDS: "30", // time to close the databases at a deploy
      RAILWAY_RUN_UID: "0", // the volume belongs to root
    },
    deploy: { restartPolicyType: "ALWAYS", requiredMountPath: "/app/data" },
    volumeMounts: { "/app/data": data },
  });

  return project("nescordbot", { resources: [data, bot] });
});
